"""A model from an encoder alone: the pretrained part is what it was, the rest learns every structure as a new one."""

import hashlib

import pytest
import torch
from adapt_phantoms import LEGEND, phantom, row, run
from encoder_folders import write_encoder

from HiEndSegLib.errors import ModelError
from HiEndSegLib.models.encoders import load_encoder_weights, read_encoder
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.operations.adapt_encoder import model_from_encoder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small(tmp_path, **words):
    """An encoder folder at the phantoms' spacing."""
    return write_encoder(tmp_path / "encoder", **{"spacing": 6.0, "crop": 24, "window": (-200.0, 400.0), **words})


def test_the_encoder_s_weights_and_words_are_in_the_model(tmp_path):
    folder = small(tmp_path)
    model = model_from_encoder(folder, LEGEND)
    weights, vit = load_encoder_weights(folder), model.network.encoder.vit.state_dict()
    assert len(vit) > 40 and all(torch.equal(tensor, weights[name]) for name, tensor in vit.items())
    card = model.card
    assert card.labels == [] and card.spacing == (6.0,) * 3 and card.tile == (24,) * 3
    assert card.windows == [[-200.0, 400.0]] and card.licence == "CC0-1.0" and "made by a test" in card.provenance
    assert torch.equal(model.network.scores(torch.rand(1, 1, 24, 24, 24)).argmax(1), torch.zeros(1, 24, 24, 24))
    build_network(card.network).load_state_dict(model.network.state_dict())
    source, file = card.training["encoder"], read_encoder(folder).weights["file"]
    assert source["file"] == file and source["sha256"] == sha256(folder / file)
    assert f"{source['id']}@{source['version']}" == read_encoder(folder).key


def test_one_labeled_case_makes_a_working_model_of_it(tmp_path):
    model, records = model_from_encoder(small(tmp_path)), []
    result = run(model, *phantom(), ["liver", "kidney_right"], steps=20, record=records.append,
                 recipe={"lr": 4e-3, "lr_middle": 4e-3, "every": 10, "spread": 0.0})
    assert [label.id for label in result.labels] == ["liver", "kidney_right"] and result.network.num_classes == 3
    losses = [entry["loss"] for entry in records if entry["kind"] == "step"]
    assert losses[-1] < 0.75 * losses[0] and result.report["best_step"] > 0
    assert row(result, "liver")["new"] and row(result, "liver")["dice_after"] is not None
    assert not result.low_rank and not any(name.startswith("encoder.vit.") for name in result.replaced)
    for name, tensor in model.network.encoder.vit.state_dict().items():
        assert torch.equal(tensor, result.network.encoder.vit.state_dict()[name])
    build_network(result.network_config).load_state_dict(result.network.state_dict())


def test_full_speed_teaches_the_encoder_too(tmp_path):
    model = model_from_encoder(small(tmp_path))
    result = run(model, *phantom(), ["liver"], steps=4, speed="full", recipe={"every": 4, "protect": 0.0})
    assert result.network.num_classes == 2 and any(name.startswith("encoder.vit.") for name in result.replaced)


def official(tmp_path, drop=()):
    """A checkpoint as published: the encoder under its prefix, a decoder beside it."""
    folder = small(tmp_path)
    state = {f"encoder.{name}": tensor for name, tensor in load_encoder_weights(folder).items() if name not in drop}
    state["decoder_embed.weight"] = torch.zeros(3, 3)
    path = tmp_path / "published.pth"
    torch.save({"state_dict": state}, path)
    return path, state


def test_a_published_checkpoint_will_do(tmp_path):
    path, state = official(tmp_path)
    model = model_from_encoder(path)
    assert model.card.spacing == (1.5,) * 3 and model.card.tile == (96,) * 3 and model.card.windows == [[-175.0, 250.0]]
    assert torch.equal(model.network.encoder.vit.blocks[2].mlp.fc1.weight, state["encoder.blocks.2.mlp.fc1.weight"])
    assert model.card.network["vit"]["depth"] == 4 and model.card.network["vit"]["patch_size"] == 12
    source = model.card.training["encoder"]
    assert source["file"] == "published.pth" and source["sha256"] == sha256(path)


@pytest.mark.parametrize("content, match", [
    ({"out.weight": torch.zeros(2)}, "no Hi-End-MAE encoder"), ({"encoder.patch_embed.proj.weight": torch.zeros(
        24, 1, 12, 12, 12)}, "no encoder blocks")])
def test_other_files_are_refused(tmp_path, content, match):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=match):
        model_from_encoder(tmp_path / "other.pth")


def test_damaged_weights_are_refused(tmp_path):
    path, state = official(tmp_path)
    state["encoder.norm.weight"][3] = float("nan")
    torch.save(state, path)
    with pytest.raises(ModelError, match="not finite"):
        model_from_encoder(path)


def test_patches_that_do_not_fit_a_tile_are_refused(tmp_path):
    with pytest.raises(ModelError, match="do not fit a tile of 36"):
        model_from_encoder(small(tmp_path, crop=36))
