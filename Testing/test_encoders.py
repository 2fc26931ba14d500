"""An exported encoder: the same activations in a network of ours, and a sentence for whatever is wrong with a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from pretrain_helpers import SIZES, VARIANT, add_variant, arguments, write_data
from safetensors.torch import load_file, save_file

from HiEndSegLib.errors import InputError, ModelError, OutputError
from HiEndSegLib.models.encoders import (
    apply_encoder,
    encoder_to_dict,
    load_encoder_weights,
    read_encoder,
    write_encoder_description,
)
from HiEndSegLib.networks.hi_end_mae import build_hi_end_mae
from HiEndSegLib.networks.unetr import UNETR12
from HiEndSegLib.networks.vit import VisionTransformer3D
from training import pretrain, pretrain_export, pretrain_state

ABOUT = {"id": "test-encoder", "version": "1.0", "title": "Encoder of a test", "licence": "Apache-2.0",
         "provenance": "Made by a test.", "description": "Nothing.", "data": [{"name": "case-0", "licence": "none"}]}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    add_variant(monkeypatch)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps."""
    patch = pytest.MonkeyPatch()
    add_variant(patch)
    folder = tmp_path_factory.mktemp("encoders")
    argv = arguments(write_data(folder / "data"), folder / "run", steps=2, validate_every=2)
    assert pretrain.main(argv) == 0
    patch.undo()
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run):
    patch = pytest.MonkeyPatch()
    add_variant(patch)
    pretrain_export.export(run, run.parent / "encoder", ABOUT)
    patch.undo()
    return run.parent / "encoder"


@pytest.fixture()
def folder(exported, tmp_path):
    """A copy of the export for a test to spoil."""
    return shutil.copytree(exported, tmp_path / "encoder")


def resign(folder, **changes) -> None:
    """A description that fits the weights as they are now, with other entries changed."""
    data = json.loads((folder / "description.json").read_text())
    content = (folder / "encoder.safetensors").read_bytes()
    data["weights"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "description.json").write_text(json.dumps(data | changes))


# ------------------------------------------------------------------------------------------------------ what works


def test_an_export_says_what_was_done_and_shows_it(run, folder):
    card = read_encoder(folder)
    assert card.key == "test-encoder@1.0" and card.variant == VARIANT and card.modality == "CT"
    assert (card.spacing, card.window, card.crop) == (3.0, (-175.0, 250.0), 24)
    assert card.network == {**SIZES["encoder"], "in_channels": 1}
    training = card.training
    assert training["step"] == training["recipe"]["steps"] == 2 and training["method"] == "Hi-End-MAE"
    assert training["data"] == ABOUT["data"] and training["losses"]["validation_step"] == 2
    assert {path.name for path in folder.iterdir()} == {"description.json", "encoder.safetensors", "loss_curve.png",
                                                        "reconstructions.png"}
    assert encoder_to_dict(card) == json.loads((folder / "description.json").read_text())
    write_encoder_description(card, folder)
    assert read_encoder(folder) == card


@pytest.mark.parametrize("cls_token", [False, True])
def test_a_vision_transformer_gives_what_the_pretrained_network_gives(cls_token, run, folder):
    state = pretrain_state.load(run / "last.pt")
    pretrained = build_hi_end_mae(VARIANT, img_size=24)
    pretrained.load_state_dict(state["network"])
    encoder = VisionTransformer3D(**SIZES["encoder"], img_size=24, cls_token=cls_token)
    said = apply_encoder(encoder, load_encoder_weights(folder))
    assert "nothing was missing or left over" in said and ("cls_token" in said) != cls_token
    x = torch.rand(2, 1, 24, 24, 24)
    with torch.no_grad():
        if not cls_token:       # fine-tuning does without the token, whose share in the attention is then missing
            for mine, theirs in zip(encoder.parameters(), [p for n, p in pretrained.encoder.named_parameters()
                                                           if n != "cls_token"], strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
        else:
            torch.testing.assert_close(encoder(x), pretrained.encoder(x), atol=2e-2, rtol=2e-2)


def test_other_sizes_of_input_and_learned_positions_work(folder):
    weights = load_encoder_weights(folder)
    encoder = VisionTransformer3D(**SIZES["encoder"], img_size=(12, 24, 18), learned_position=True)
    reference = VisionTransformer3D(**SIZES["encoder"], img_size=24)
    assert "nothing was missing" in apply_encoder(encoder, weights)
    apply_encoder(reference, weights)
    x = torch.rand(1, 1, 12, 24, 18)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), reference(x), atol=1e-5, rtol=1e-5)


def test_a_unetr_takes_it_and_several_channels_share_it(folder):
    weights = load_encoder_weights(folder)
    options = {"img_size": 24, "patch_size": 6, "hidden_size": 24, "mlp_dim": 48, "num_layers": 10, "num_heads": 2,
               "feature_size": 4, "out_channels": 3}
    network = UNETR12(in_channels=1, **options)
    said = apply_encoder(network, weights)
    assert "encoder1" in said and "vit" not in said.split("missing")[1]       # what is missing is the decoder alone
    reference = VisionTransformer3D(**SIZES["encoder"], img_size=24, norm_eps=1e-5)
    apply_encoder(reference, weights)
    x = torch.rand(1, 1, 24, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(network.vit(x, (3,))[0], reference(x), atol=1e-4, rtol=1e-4)
    assert "spread evenly over 2" in apply_encoder(UNETR12(in_channels=2, **options), weights)


def test_reading_a_description_needs_no_torch(folder):
    code = (f"import sys; from HiEndSegLib.models.encoders import read_encoder; print(read_encoder({str(folder)!r}).key);"
            " assert not any(name.split('.')[0] == 'torch' for name in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "test-encoder@1.0", done.stderr


# ---------------------------------------------------------------------------------------------------- what does not


def test_altered_cut_and_missing_weights_are_sentences(folder):
    path = folder / "encoder.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(ModelError, match="instead of .* incomplete or altered"):
        load_encoder_weights(folder)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match="do not match the checksum"):
        load_encoder_weights(folder)
    path.write_bytes(content[:200])
    resign(folder)
    with pytest.raises(ModelError, match="damaged or cut off|is cut off"):
        load_encoder_weights(folder)
    path.unlink()
    with pytest.raises(ModelError, match="has no file encoder.safetensors"):
        load_encoder_weights(folder)


@pytest.mark.parametrize("change, words", [
    (lambda state: state.update({"norm.weight": torch.zeros(30)}), r"norm.weight in the shape \(30,\).* needs \(24,\)"),
    (lambda state: state.pop("blocks.3.attn.qkv.bias"), "lacks the tensor blocks.3.attn.qkv.bias"),
    (lambda state: state.update({"extra": torch.zeros(1)}), "holds a tensor 'extra'"),
    (lambda state: state["norm.bias"].fill_(float("nan")), "norm.bias that are not finite"),
])
def test_weights_that_do_not_fit_the_description_are_sentences(change, words, folder):
    path = folder / "encoder.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    resign(folder)
    with pytest.raises(ModelError, match=words):
        load_encoder_weights(folder)


@pytest.mark.parametrize("changes, words", [
    ({"format_version": 2}, "format version 2, and this HiEndSeg reads up to 1"),
    ({"format": "hiendseg-model"}, "field format must be 'hiendseg-encoder'"),
    ({"crop": 25}, "is no multiple of network.patch_size"),
    ({"window": [250, -175]}, "from a lower to a higher"),
    ({"network": {**SIZES["encoder"], "in_channels": 1, "num_heads": 5}}, "does not divide"),
    ({"network": {**SIZES["encoder"], "in_channels": 1, "depth": 100000}}, "at most 128"),
    ({"weights": {"file": "../x.safetensors", "sha256": "0" * 64, "bytes": 1, "dtype": "float16"}}, "outside"),
    ({"surprise": 1}, "unknown entry 'surprise'"),
    ({"title": "two\x1b[2Jlines"}, "control characters"),
])
def test_a_description_that_cannot_be_is_a_sentence(changes, words, folder):
    path = folder / "description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=words.replace("[", r"\[")):
        read_encoder(folder)


def test_no_folder_and_no_json_are_sentences(tmp_path, folder):
    with pytest.raises(ModelError, match="There is no encoder folder"):
        read_encoder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="has no file description.json"):
        read_encoder(tmp_path)
    (folder / "description.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        read_encoder(folder)


def test_another_encoder_is_refused_by_the_network(folder):
    weights = load_encoder_weights(folder)
    with pytest.raises(ModelError, match="width 24, 10 blocks.* this network has width 24, 12 blocks"):
        apply_encoder(VisionTransformer3D(**{**SIZES["encoder"], "depth": 12}, img_size=24), weights)


def test_bad_exports_are_sentences(run, tmp_path, capsys):
    with pytest.raises(InputError, match="lack licence"):
        pretrain_export.export(run, tmp_path / "x", {key: value for key, value in ABOUT.items() if key != "licence"})
    with pytest.raises(InputError, match="have an entry 'network'"):
        pretrain_export.export(run, tmp_path / "x", ABOUT | {"network": {}})
    with pytest.raises(ModelError, match="There is no weights file"):
        pretrain_export.export(tmp_path, tmp_path / "x", ABOUT)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="could not be written"):
        pretrain_export.export(run, tmp_path / "file" / "x", ABOUT)
    about = tmp_path / "about.json"
    about.write_text("[]")
    assert pretrain_export.main([str(run), str(tmp_path / "x"), "--about", str(about)]) == 2
    assert "holds no JSON object" in capsys.readouterr().err
    about.write_text(json.dumps(ABOUT))
    assert pretrain_export.main([str(run), str(tmp_path / "x"), "--about", str(about)]) == 0
    assert "test-encoder@1.0: step 2 of 2" in capsys.readouterr().out


def test_half_precision_keeps_what_was_trained(run, folder):
    trained = pretrain_state.load(run / "last.pt")["network"]
    for name, tensor in load_encoder_weights(folder).items():
        np.testing.assert_allclose(tensor.numpy(), trained[f"encoder.{name}"].numpy(), atol=1e-6, rtol=1e-3)
