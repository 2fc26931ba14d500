"""Effective rank beside effective rank: crops, numbers against a direct computation, table, figure and bad inputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from encoder_folders import write_encoder
from oneshot_phantoms import TINY, write_case

from HiEndSegLib.errors import InputError
from HiEndSegLib.networks.vit import build_vit
from training import representation
from training.representation import Spectra, draw_crops, markdown, read_scaled, spectra

WINDOW = (-175.0, 250.0)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("held-out"), "ct-abdomen-02", 1)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"), training={"volumes": ["x/ct-abdomen-02", "y"]})


def arguments(volume, out, *more):
    return [str(volume), "--out", str(out), "--crop", "24", "--crops", "3", "--network", json.dumps(TINY),
            "--spacing", "3", "--threads", "1", *more]


def test_volumes_are_scaled_at_the_asked_spacing(volume):
    scaled = read_scaled(volume, 3.0, WINDOW)
    with np.load(volume) as data:
        np.testing.assert_allclose(scaled, np.clip((data["image"] + 175.0) / 425, 0, 1), atol=1e-6)
    assert read_scaled(volume, 6.0, WINDOW).shape == (17, 16, 15)


def test_crops_take_turns_and_see_something():
    rng = np.random.default_rng(0)
    first, second = np.zeros((40, 30, 8), np.float32), rng.uniform(0.5, 1, (26, 26, 26)).astype(np.float32)
    first[20, 10, 3] = 0.25
    crops = draw_crops([first, second], 5, 24, seed=0)
    assert crops.shape == (5, 1, 24, 24, 24)
    assert [float(crop.max()) == 0.25 for crop in crops] == [True, False, True, False, True]
    assert (crops[1] > 0).all() and torch.equal(crops, draw_crops([first, second], 5, 24, seed=0))
    with pytest.raises(InputError, match="Volume 2 of 2 is empty"):
        draw_crops([second, first * 0], 2, 24, seed=0)


@pytest.mark.parametrize("per_head", [False, True])
def test_ranks_against_a_direct_computation(per_head):
    torch.manual_seed(0)
    encoder = build_vit("vit_tiny_12p", img_size=36, **TINY).eval()
    crops = torch.rand(2, 1, 36, 36, 36)
    found = spectra(encoder, crops, row="a", per_head=per_head)
    kept = []
    for block in encoder.blocks:          # the values as the network itself computes them
        block.attn.qkv.register_forward_hook(lambda module, inputs, output: kept.append(output[0, :, 48:]))
    with torch.no_grad():
        encoder(crops[1:])
    for layer, values in enumerate(kept):
        parts = values.double().split(12, dim=1) if per_head else [values.double()]
        ranks = []
        for part in parts:
            s = np.linalg.svd(part.numpy(), compute_uv=False)
            q = s / s.sum()
            ranks.append(np.exp(-(q * np.log(q)).sum()))
        assert found.ranks[layer, 1] == pytest.approx(np.mean(ranks), rel=1e-9)
    assert found.ranks.shape == (4, 2) and found.limit == (12 if per_head else 24)
    np.testing.assert_allclose(found.shares.sum(1), 1.0)


def test_table_by_hand():
    shares = np.full((2, 4), 0.25)
    text = markdown([Spectra("random", np.array([[1.0, 2.0], [3.0, 5.0]]), shares, 4),
                     Spectra("MAE", np.array([[2.0], [4.0]]), shares, 4)], ["a remark"])
    assert "| 1 | 1.5 ± 0.7 | 2.0 |" in text and "| 2 | 4.0 ± 1.4 | 4.0 |" in text
    assert "| mean | 2.8 ± 1.1 | 3.0 |" in text and "- a remark" in text


def test_command_writes_table_numbers_and_figure(volume, tmp_path, capsys, encoder_folder):
    out = tmp_path / "out"
    assert representation.main(arguments(volume, out, "--rows", "random", f"MAE={encoder_folder}")) == 0
    printed = capsys.readouterr().out
    assert "| layer | random | MAE |" in printed and (out / "representation.md").read_text(encoding="utf-8") == printed
    assert "MAE: pre-training saw ct-abdomen-02." in printed and "MAE: pre-trained at 1.5 mm." in printed
    numbers = json.loads((out / "representation.json").read_text())
    assert [row["row"] for row in numbers["rows"]] == ["random", "MAE"]
    assert np.array(numbers["rows"][0]["ranks"]).shape == (4, 3)
    assert numbers["rows"][0]["ranks"] != numbers["rows"][1]["ranks"]
    assert (out / "representation.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("more, sentence", [
    (("--rows", "MAE=nowhere"), "nowhere"), (("--rows", "scratch"), "random or NAME=FOLDER"),
    (("--crop", "30"), "a multiple of 12"), (("--crops", "0"), "at least one crop"),
    (("--window", "5000", "6000"), "is empty in this intensity window")])
def test_bad_options_end_in_a_sentence(volume, tmp_path, capsys, more, sentence):
    assert representation.main(arguments(volume, tmp_path / "out", *more)) == 1
    printed = capsys.readouterr().err
    assert sentence in printed and len(printed.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_unreadable_volumes_and_wrong_encoders_end_in_a_sentence(volume, tmp_path, capsys, encoder_folder):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(volume.read_bytes()[:2000])
    assert representation.main(arguments(broken, tmp_path / "out")) == 1
    assert "damaged" in capsys.readouterr().err
    assert representation.main(arguments(tmp_path / "none.nii.gz", tmp_path / "out")) == 1
    assert "none.nii.gz" in capsys.readouterr().err
    wider = json.dumps({**TINY, "embed_dim": 48})
    assert representation.main(arguments(volume, tmp_path / "out", "--network", wider, "--rows",
                                         f"MAE={encoder_folder}")) == 1
    assert "Row MAE: " in capsys.readouterr().err
