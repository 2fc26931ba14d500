"""``python -m training.parity``: small recordings of our own networks, and what must make it say no."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity_helpers import judge

from HiEndSegLib.networks.position import sincos_position_3d
from HiEndSegLib.networks.unetr import UNETR12
from training.parity.__main__ import main
from training.parity.comparison import difference

TABLE = "vit.patch_embedding.position_embeddings"


def record(*, img_size=24, patch_size=12, in_channels=1, depth=5, skips=(1, 2, 4), norm="instance", batch=1,
           blocks=(0, 3), stride=2, classes=4) -> dict:
    """A recording in the format of the authors' one, made with our own network and uneven weights."""
    torch.manual_seed(0)
    config = {"img_size": img_size, "patch_size": patch_size, "in_channels": in_channels, "out_channels": classes,
              "feature_size": 4, "hidden_size": 24, "mlp_dim": 40, "num_heads": 3, "vit_ln_eps": 1e-6, "norm": norm,
              "skip_indices": list(skips)}
    network = UNETR12(img_size=img_size, patch_size=patch_size, in_channels=in_channels, out_channels=classes,
                      feature_size=4, hidden_size=24, mlp_dim=40, num_heads=3, num_layers=depth, ln_eps=1e-6,
                      norm=norm, skip_indices=skips).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
        image = torch.randn(batch, in_channels, *network.img_size).half()
        out = network.forward_features(image.float(), attention=blocks)
    kept = ("encoder2", "encoder3", "encoder4", "decoder5", "decoder4")
    return {"config": config, "state_dict": dict(network.state_dict()), "image": image, "logits_stride": stride,
            "logits": out.logits[..., ::stride, ::stride, ::stride].clone(), "vit_out": out.vit_out,
            "vit_hidden": out.vit_hidden, "features": {name: out.features[name] for name in kept},
            "attention": dict(out.attention),
            "argmax_counts": torch.bincount(out.logits.argmax(1).flatten(), minlength=classes)}


@pytest.fixture(scope="module")
def a_recording() -> dict:
    return record()


def copy(value):
    if isinstance(value, dict):
        return {key: copy(part) for key, part in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_every_recorded_tensor_gets_a_line(tmp_path, capsys, a_recording):
    code, lines, errors = judge(tmp_path, capsys, a_recording)
    assert code == 0 and errors == ""
    assert [line.split()[0] for line in lines] == [
        "logits", "vit_out", "vit_hidden", "features.encoder2", "features.encoder3", "features.encoder4",
        "features.decoder5", "features.decoder4", "attention.0", "attention.3", "argmax_counts", "max"]
    values = [float(line.split()[1]) for line in lines]
    assert values[-1] == max(values[:-1]) < 1e-5


def test_as_a_command(tmp_path, a_recording):
    path = tmp_path / "Aufnahme mit ö.pt"
    torch.save(a_recording, path)
    done = subprocess.run([sys.executable, "-m", "training.parity", str(path)], capture_output=True, text=True,
                          check=False, cwd=Path(__file__).resolve().parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("max ")


@pytest.mark.parametrize("options", [
    {"img_size": 48, "in_channels": 3, "batch": 2, "stride": 5, "skips": (0, 2, 3)},
    {"img_size": 32, "patch_size": 8}, {"img_size": 32, "patch_size": 16, "stride": 1},
    {"img_size": (24, 12, 36), "norm": "batch", "classes": 1}])
def test_other_configurations(tmp_path, capsys, options):
    code, _, errors = judge(tmp_path, capsys, record(**options))
    assert code == 0, errors


def test_variations_of_the_same_content(tmp_path, capsys, a_recording):
    other = copy(a_recording)
    other["state_dict"] = {f"module.{key}": value for key, value in other["state_dict"].items()}
    for i in range(5):
        other["state_dict"][f"module.vit.blocks.{i}.norm_cross_attn.weight"] = torch.ones(24)
    other["attention"] = {str(block): value for block, value in other["attention"].items()}
    other["vit_hidden"] = list(other["vit_hidden"])
    other["features"]["encoder2"] = other["features"]["encoder2"][:, :, ::4, ::4, ::4].clone()
    other["argmax_counts"] = other["argmax_counts"].tolist()
    other["made_with"] = "torch 2"
    code, lines, errors = judge(tmp_path, capsys, other)
    assert code == 0
    assert "every 4th voxel" in errors and "made_with is not part" in errors
    assert sum(line.startswith("features.encoder2 ") for line in lines) == 1


def test_half_precision_recordings_are_not_blamed_for_their_rounding(tmp_path, capsys, a_recording):
    other = copy(a_recording)
    other["logits"] = other["logits"].half()
    assert (other["logits"].float() - a_recording["logits"]).abs().max() > 1e-4
    assert judge(tmp_path, capsys, other)[0] == 0
    other["logits"][0, 0, 0, 0, 0] += 0.01
    assert judge(tmp_path, capsys, other)[0] == 1


def test_fields_that_are_none_or_absent(tmp_path, capsys, a_recording):
    other = copy(a_recording)
    other["vit_hidden"] = None
    del other["attention"], other["features"], other["argmax_counts"]
    code, lines, _ = judge(tmp_path, capsys, other)
    assert code == 0 and [line.split()[0] for line in lines] == ["logits", "vit_out", "max"]
    for name in ("logits", "vit_out"):
        del other[name]
    code, lines, errors = judge(tmp_path, capsys, other)
    assert (code, lines) == (1, ["max nan"]) and "nothing to compare" in errors


def test_counts_may_be_per_sample_or_of_the_recorded_voxels(tmp_path, capsys):
    recording = record(batch=2)
    counts = recording["argmax_counts"]
    network_winners = recording["logits"].argmax(1)
    recording["argmax_counts"] = torch.bincount(network_winners.flatten(), minlength=4)
    assert judge(tmp_path, capsys, recording)[0] == 0
    recording["argmax_counts"] = {k: int(v) for k, v in enumerate(counts)}
    assert judge(tmp_path, capsys, recording)[0] == 0
    recording["argmax_counts"] = counts[None].repeat(2, 1)
    code, _, errors = judge(tmp_path, capsys, recording)
    assert code == 1 and "argmax_counts was not compared: it counts" in errors


@pytest.mark.parametrize("spoil, words", [
    (lambda r: r["logits"].view(-1)[7].add_(2e-4), "logits differs by 2"),
    (lambda r: r["vit_out"][0, 3].sub_(2e-4), "vit_out differs"),
    (lambda r: r["vit_hidden"][2].add_(2e-4), "vit_hidden differs"),
    (lambda r: r["features"]["decoder5"].view(-1)[0].add_(1), "features.decoder5 differs by 1"),
    (lambda r: r["attention"][3].mul_(1.01), "attention.3 differs"),
    (lambda r: r["logits"].view(-1)[0].fill_(float("nan")), "logits differs by nan"),
    (lambda r: r["argmax_counts"].add_(torch.tensor([600, -600, 0, 0])), "argmax_counts differs by 600"),
    (lambda r: r["attention"].update({9: r["attention"][0]}), "attention.9 was not compared: the encoder has"),
    (lambda r: r["attention"].update({"all": r["attention"][0]}), "attention.all was not compared"),
    (lambda r: r["features"].update(decoder9=torch.ones(1)), "features.decoder9 was not compared"),
    (lambda r: r.update(vit_out=r["vit_out"][:, 1:]), "vit_out was not compared: it was recorded with the shape"),
    (lambda r: r.update(logits="gone"), "logits was not compared: it is not a tensor"),
    (lambda r: r.update(features=[1]), "features was not compared"),
    (lambda r: r["state_dict"]["vit.blocks.2.attn.qkv.bias"].add_(0.1), "logits differs"),
    (lambda r: r["config"].update(vit_ln_eps=1e-2), "vit_out differs"),
    (lambda r: r["config"].update(skip_indices=[1, 3, 4]), "features.encoder3 differs"),
    (lambda r: r["config"].update(num_heads=2), "attention.0 was not compared"),
    (lambda r: r["state_dict"].pop("out.conv.conv.bias"), "do not fill the network: 1 missing (out.conv.conv.bias)"),
    (lambda r: r["config"].update(feature_size=8), "of another shape"),
    (lambda r: r["config"].pop("mlp_dim"), "config has no mlp_dim"),
    (lambda r: r["config"].update(patch_size=7), "describes no UNETR"),
    (lambda r: r.pop("image"), "has no image"),
    (lambda r: r.update(image=r["image"][..., :13]), "does not take its image")])
def test_anything_wrong_ends_in_exit_code_one(tmp_path, capsys, a_recording, spoil, words):
    recording = copy(a_recording)
    spoil(recording)
    code, lines, errors = judge(tmp_path, capsys, recording)
    assert code == 1 and words in errors
    assert lines[-1].startswith("max ")


def test_position_table_alone_and_the_rest_from_a_second_file(tmp_path, capsys):
    small, large = record(), record(img_size=48)
    large["state_dict"] = {**small["state_dict"], TABLE: large["state_dict"][TABLE]}
    expected = UNETR12(img_size=48, out_channels=4, feature_size=4, hidden_size=24, mlp_dim=40, num_heads=3,
                       num_layers=5, ln_eps=1e-6, skip_indices=(1, 2, 4)).eval()
    expected.load_state_dict(large["state_dict"])
    with torch.no_grad():
        large["logits"] = expected(large["image"].float())[..., ::2, ::2, ::2].clone()
    for name in ("vit_out", "vit_hidden", "features", "attention", "argmax_counts"):
        del large[name]
    large["state_dict"] = {TABLE: large["state_dict"][TABLE]}
    code, _, errors = judge(tmp_path, capsys, large)
    assert code == 1 and "--weights" in errors
    rest = tmp_path / "rest.pt"
    for content in (small, {"epoch": 1, "state_dict": small["state_dict"]}, dict(small["state_dict"])):
        torch.save(content, rest)
        code, lines, errors = judge(tmp_path, capsys, large, "--weights", str(rest))
        assert code == 0, errors
        assert lines[0].startswith("logits ")
    code, _, errors = judge(tmp_path, capsys, large, "--weights", str(tmp_path / "absent.pt"))
    assert code == 1 and "no weights file" in errors


def test_position_table(tmp_path, capsys):
    recording = {"grid": [2, 3, 4], "dim": 24, "temperature": 10000.0, "pos_embed": sincos_position_3d((2, 3, 4), 24)}
    code, lines, _ = judge(tmp_path, capsys, recording)
    assert (code, lines) == (0, ["pos_embed 0.000e+00", "max 0.000e+00"])
    for change in ({"temperature": 100.0}, {"grid": [4, 3, 2]}):
        code, _, errors = judge(tmp_path, capsys, {**recording, **change})
        assert code == 1 and "pos_embed differs" in errors
    code, _, errors = judge(tmp_path, capsys, {**recording, "grid": [2, 3, 5]})
    assert code == 1 and "recorded with the shape (1, 24, 24)" in errors
    code, _, errors = judge(tmp_path, capsys, {**recording, "dim": 23})
    assert code == 1 and "multiple of 6" in errors


@pytest.mark.parametrize("recording, words", [
    ({"state_dict": {"a": torch.ones(1)}, "config": {"depths": [2]}, "stage0": torch.ones(1)}, "HRMedSeg's encoder"),
    ({"weights": torch.ones(1)}, "no recording this command knows (its fields: weights)")])
def test_kinds_that_are_not_compared(tmp_path, capsys, recording, words):
    code, lines, errors = judge(tmp_path, capsys, recording)
    assert (code, lines) == (2, []) and words in errors


def test_unreadable_file(tmp_path, capsys):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 and no more")
    assert main([str(tmp_path / "cut.pt")]) == 2
    assert "cut off" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.pt")]) == 2


def test_difference_by_hand():
    inf, nan = float("inf"), float("nan")
    assert difference(torch.tensor([1.0, inf, -2.0]), torch.tensor([1.5, inf, -2.0])) == 0.5
    assert difference(torch.tensor([inf]), torch.tensor([1.0])) == inf
    assert difference(torch.tensor([nan]), torch.tensor([nan])) != 0.0
    # half precision around 1 has steps of 2^-10: half a step is its own rounding
    assert difference(torch.tensor([1.0 + 2**-11]), torch.tensor([1.0]).half()) == 0.0
    assert difference(torch.tensor([1.0 + 2**-9]), torch.tensor([1.0]).half()) == pytest.approx(2**-9 - 2**-11)
