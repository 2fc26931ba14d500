"""Supervised training end to end on a phantom: it learns, resumes, respects partial labels, and exports a model."""

import json

import numpy as np
import pytest
import torch
from encoder_folders import write_encoder

from HiEndSegLib.models.card import read_card
from HiEndSegLib.models.encoders import load_encoder_weights
from HiEndSegLib.models.loading import load_model
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.objective import maskmed_loss, pointwise_loss, sublattice
from training import export, supervise
from training.quick import confident_bits, quick_dice

TINY = dict(img_size=24, channels=[8, 8, 16], fsad_dim=12, fsad_heads=2, fsad_depth=1, mask_dim=8, head_dim=24,
            head_heads=2, vit=dict(name="vit_tiny_12p", embed_dim=24, depth=4, num_heads=2), taps=[1, 2, 3])


def phantom(rng, shape=(40, 40, 40)):
    """A bright ball (class 1) and a dark ball (class 2) in grey."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    image, possible = rng.normal(0, 10, shape), np.ones(shape, np.uint32)
    for value, hu, centre in ((1, 200, (12, 20, 20)), (2, -170, (28, 20, 20))):
        ball = ((grid - (np.array(centre) + rng.normal(0, 2, 3))) ** 2).sum(-1) < 8 ** 2
        image[ball], possible[ball] = hu, 1 << value
    return image.astype(np.int16), possible


@pytest.fixture
def cache(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "dev").mkdir()
    for n in range(3):
        image, possible = phantom(rng)
        if n == 2:                                    # one case is annotated only for class 1
            possible[possible != 0b010] = 0b101
        np.savez(tmp_path / f"case-{n}.npz", image=image, possible=possible)
    image, possible = phantom(rng)
    np.savez(tmp_path / "dev" / "held-out.npz", image=image, labels=np.log2(possible).astype(np.uint8))
    return tmp_path


def arguments(cache, run, minutes, *more):
    return [str(cache), "--run", str(run), "--minutes", str(minutes), "--num-classes", "3", "--tile", "24",
            "--small-tile", "24", "--network", json.dumps(TINY), "--threads", "1", "--lr", "3e-3", "--ema", "0.9",
            "--pseudo-at", "", "--score-every", "100000", *more]


def test_training_learns_resumes_and_exports(cache, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(supervise, "dense_scores", lambda net, image, windows, **_: _whole(net, image, windows))
    supervise.main(arguments(cache, run, 0.06))
    first = torch.load(run / "last.pt", weights_only=True)
    supervise.main(arguments(cache, run, 0.12, "--resume"))
    second = torch.load(run / "last.pt", weights_only=True)
    assert second["step"] > first["step"] > 3 and second["used"] > first["used"]
    scores = [json.loads(line) for line in (run / "dev.jsonl").read_text().splitlines()]
    assert [s["step"] for s in scores] == [first["step"], second["step"]]
    assert {path.name for path in run.iterdir()} <= {"last.pt", "config.json", "dev.jsonl", "log.jsonl"}
    about = dict(id="phantom", version="0.0.1", title="Phantom", description="", licence="CC0-1.0",
                 provenance="made by a test", training={}, scores=[])
    monkeypatch.setattr(export, "card_labels", lambda: [
        dict(value=v, id=f"ball_{v}", name=f"Ball {v}", color=[v, 0, 0], terminology=None, largest_component=False)
        for v in (1, 2)])
    card = export.export(run, tmp_path / "model", about)
    model = load_model(read_card(tmp_path / "model"))
    assert card.checksum == model.card.checksum
    x = torch.rand(1, 2, 24, 24, 24)
    network = build_network(json.loads((run / "config.json").read_text())["network"]).eval()
    network.load_state_dict(second["average"])
    with torch.no_grad():
        torch.testing.assert_close(model.network.scores(x), network.scores(x), atol=0.02, rtol=0)


def test_training_starts_from_a_pretrained_encoder(cache, tmp_path):
    """The ViT's first weights are the encoder's: with a learning rate of zero they stay so."""
    folder = write_encoder(tmp_path / "encoder")
    run = tmp_path / "run"
    supervise.main(arguments(cache, run, 0.005, "--encoder", str(folder), "--lr", "0"))
    kept = torch.load(run / "last.pt", weights_only=True)["network"]
    weights = load_encoder_weights(folder)
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.3.mlp.fc2.bias", "norm.weight"):
        torch.testing.assert_close(kept[f"encoder.vit.{name}"], weights[name].float())


def _whole(network, image, windows):
    """Scores of the middle 24^3 box; the rest is background. Enough to see that scoring runs."""
    scores = np.zeros((3, *image.shape), np.float32)
    scores[0] = 1
    box = (slice(8, 32),) * 3
    volume = torch.from_numpy(image[box].astype(np.float32))
    x = torch.stack([((volume - lo) / (hi - lo)).clamp(0, 1) for lo, hi in windows])[None]
    with torch.no_grad():
        scores[(slice(None), *box)] = network.scores(x)[0].numpy()
    return scores


@pytest.mark.parametrize("kind", ["maskmed", "pointwise"])
def test_the_loss_falls_on_one_tile_and_the_argmax_follows(kind):
    torch.manual_seed(0)
    options = {k: v for k, v in TINY.items() if kind == "maskmed" or not k.startswith("head")}
    network = build_network({"kind": kind, "num_classes": 3, "in_channels": 2, **options})
    image, possible = phantom(np.random.default_rng(1), (24, 24, 24))
    possible[...] = 1
    possible[:12], image[:12] = 2, 200
    possible[:, :6], image[:, :6] = 4, -170
    x = torch.from_numpy(np.stack([np.clip((image + 175) / 425, 0, 1), np.clip((image + 1000) / 2000, 0, 1)])).float()[None]
    bits = torch.from_numpy(possible.astype(np.int64))[None]
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    loss = maskmed_loss if kind == "maskmed" else pointwise_loss
    values = []
    for step in range(40):
        terms = loss(network(x), bits, offset=(step % 2, step % 3, step % 5))
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        values.append(terms["loss"].item())
    assert values[-1] < 0.5 * values[0]
    labels = torch.log2(bits.float()).long()
    assert (network.eval().scores(x).argmax(1) == labels).float().mean() > 0.9


def test_sublattice_visits_every_voxel_once():
    volume = torch.arange(4 * 4 * 4).reshape(4, 4, 4)
    seen = torch.cat([sublattice(volume, (i, j, k)).flatten() for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    assert sorted(seen.tolist()) == list(range(64))


def test_confident_answers_fill_open_voxels_only_where_allowed():
    possible = np.array([0b111, 0b111, 0b010, 0b101], np.int32)
    scores = np.array([[0.02, 0.4, 0.9, 0.03], [0.95, 0.5, 0.05, 0.95], [0.03, 0.1, 0.05, 0.02]])
    assert confident_bits(possible, scores, 0.9).tolist() == [0b010, 0b111, 0b010, 0b101]


def test_quick_dice_ignores_what_is_not_annotated():
    labels = np.array([1, 1, 2, 255, 0])
    assert quick_dice(np.array([1, 0, 2, 1, 2]), labels) == {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)}
