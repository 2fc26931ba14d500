"""Loading: what is saved comes back, and whatever does not fit is said before memory is taken."""

from __future__ import annotations

import dataclasses
import json
import struct

import pytest
import torch
from torch import nn

from HiEndSegLib.errors import Cancelled, ModelError, OptionError, OutOfMemoryError, OutputError
from HiEndSegLib.models import loading
from HiEndSegLib.models.card import card_from_dict, describe_weights, read_card, write_card
from HiEndSegLib.models.loading import load_model, save_model
from HiEndSegLib.tasks import CancelToken
from tiny_models import build_tiny, card_dict, write_tiny


def test_a_saved_network_comes_back_with_its_numbers(tmp_path):
    card = card_from_dict(card_dict())
    network = build_tiny(card.network)
    saved = save_model(card, network, tmp_path / "tiny", dtype="float32")
    assert saved == read_card(tmp_path / "tiny") and saved.weights["dtype"] == "float32"
    model = load_model(saved, build=build_tiny)
    x = torch.randn(1, 1, 4, 4, 4)
    assert torch.equal(model.network.scores(x), network.scores(x))
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["card.json", "weights.safetensors"]


def test_half_precision_on_disk_becomes_float_in_memory_or_what_is_asked(tmp_path):
    card = card_from_dict(card_dict())
    saved = save_model(card, build_tiny(card.network), tmp_path)
    assert saved.weights["dtype"] == "float16"
    assert load_model(saved, build=build_tiny).dtype == torch.float32
    assert load_model(saved, dtype=torch.bfloat16, build=build_tiny).dtype == torch.bfloat16


def test_a_real_network_loads_through_the_builder(tmp_path):
    from HiEndSegLib.networks.build import build_network
    network = {"kind": "maskmed", "num_classes": 3, "in_channels": 2, "img_size": 48,
               "vit": {"name": "vit_tiny_12p", "depth": 2}, "taps": [0], "channels": [8, 16, 16], "fsad_dim": 24,
               "fsad_heads": 2, "fsad_depth": 1, "head_dim": 24, "head_heads": 2, "mask_dim": 4}
    windows = {"unit": "HU", "windows": [[-175, 250], [-1000, 1000]]}
    card = read_card(write_tiny(tmp_path, build_network, network=network, intensity=windows))
    scores = load_model(card).network.scores(torch.zeros(1, 2, 48, 48, 48))
    assert scores.shape == (1, 3, 48, 48, 48)
    assert torch.allclose(scores.sum(1), torch.ones(1, 48, 48, 48), atol=1e-4) and (scores >= 0).all()


UNETR = {"kind": "unetr12", "out_channels": 3, "img_size": 24, "patch_size": 12, "hidden_size": 12, "mlp_dim": 12,
         "num_heads": 2, "num_layers": 3, "skip_indices": [0, 1, 2], "feature_size": 2}


def test_a_baseline_loads_and_its_tile_must_be_the_cards(tmp_path):
    from HiEndSegLib.networks.build import build_network
    card = read_card(write_tiny(tmp_path, build_network, network=UNETR))
    assert load_model(card).network.scores(torch.zeros(1, 1, 24, 24, 24)).shape == (1, 3, 24, 24, 24)
    with pytest.raises(ModelError, match="tile .* has 36 x 24 x 24 voxels and its network takes 24 x 24 x 24"):
        load_model(dataclasses.replace(card, tile=(36, 24, 24)))


def test_monais_unetr_loads_too(tmp_path):
    pytest.importorskip("monai")
    from HiEndSegLib.networks.build import build_network
    network = {"kind": "unetr16", "out_channels": 3, "img_size": 32, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2,
               "feature_size": 2}
    card = read_card(write_tiny(tmp_path, build_network, network=network, tile=[32, 32, 32]))
    assert load_model(card).network.num_classes == 3


def test_altered_weights_are_not_opened(tmp_path):
    card = read_card(write_tiny(tmp_path))
    raw = bytearray((tmp_path / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match="checksum"):
        load_model(card, build=build_tiny)


@pytest.mark.parametrize("network, words", [
    ({"kind": "tiny", "num_classes": 3, "wings": 2}, "no option 'wings'"),
    ({"kind": "tiny"}, "cannot be built"),
])
def test_a_configuration_the_network_does_not_know(tmp_path, network, words):
    card = dataclasses.replace(read_card(write_tiny(tmp_path)), network=network)
    with pytest.raises(ModelError, match=words):
        load_model(card, build=build_tiny)


def test_an_unknown_kind_is_said(tmp_path):
    card = read_card(write_tiny(tmp_path))
    with pytest.raises(ModelError, match="cannot be built .*'tiny'"):
        load_model(card)


def test_an_absurd_network_is_refused_without_its_memory(tmp_path):
    card = read_card(write_tiny(tmp_path))
    built = []

    def huge(config):
        built.append(torch.empty(0).device.type)
        return nn.Linear(2_000_000, 2_000_000)  # 16 TB

    with pytest.raises(ModelError, match="do not fit the network"):
        load_model(card, build=huge)
    assert built == ["meta"]


def test_missing_left_over_and_differently_shaped_tensors_are_counted(tmp_path):
    card = card_from_dict(card_dict())
    state = build_tiny(card.network).state_dict()
    state["conv.extra"] = torch.zeros(2)
    state["conv.weight"] = torch.zeros(4, 1, 1, 1, 1)
    del state["conv.bias"]
    saved = save_model(card, state, tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(saved, build=build_tiny)
    said = str(caught.value)
    assert "1 tensors are missing (first: conv.bias)" in said and "1 are left over (first: conv.extra)" in said
    assert "conv.weight, [4, 1, 1, 1, 1] instead of [3, 1, 1, 1, 1]" in said


def test_classes_and_labels_must_agree(tmp_path):
    card = read_card(write_tiny(tmp_path, network={"kind": "tiny", "num_classes": 5}))
    with pytest.raises(ModelError, match="names 2 structures and its network has 5 classes"):
        load_model(card, build=build_tiny)


def test_windows_and_channels_must_agree(tmp_path):
    card = read_card(write_tiny(tmp_path))
    with pytest.raises(ModelError, match="2 intensity windows and a network of 1 input channels"):
        load_model(dataclasses.replace(card, windows=[[0, 1], [2, 3]]), build=build_tiny)


def test_values_that_are_not_finite(tmp_path):
    card = card_from_dict(card_dict())
    network = build_tiny(card.network)
    with torch.no_grad():
        network.conv.weight[0] = 1e6  # infinite in float16
    with pytest.raises(ModelError, match="not finite .in conv.weight"):
        save_model(card, network, tmp_path)
    assert not list(tmp_path.iterdir())


def _claim(folder, header: bytes):
    path = folder / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    card = dataclasses.replace(card_from_dict(card_dict(weights=describe_weights(path, "float32"))), folder=folder)
    write_card(card, folder)
    return card


def _entry(shape, end):
    return json.dumps({"conv.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


@pytest.mark.parametrize("header", [b"{", _entry([10 ** 9, 10 ** 3], 4 * 10 ** 12), _entry([2 ** 62, 8], 0)])
def test_headers_that_lie(tmp_path, header):
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(_claim(tmp_path, header), build=build_tiny)


def test_a_pickle_named_safetensors_is_not_executed(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    card = card_from_dict(card_dict(weights=describe_weights(tmp_path / "weights.safetensors", "float32")), tmp_path)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(card, build=build_tiny)


def test_more_than_the_free_memory_is_said_first(tmp_path, monkeypatch):
    card = read_card(write_tiny(tmp_path))
    monkeypatch.setattr(loading.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10})())
    with pytest.raises(OutOfMemoryError, match="close other programs"):
        load_model(card, build=build_tiny)


def test_cancel_while_loading(tmp_path):
    card = read_card(write_tiny(tmp_path))
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        load_model(card, build=build_tiny, cancel=cancel)


def test_saving_to_a_place_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    card = card_from_dict(card_dict())
    with pytest.raises(OutputError, match="could not be written"):
        save_model(card, build_tiny(card.network), tmp_path / "file" / "model")


def test_the_builders_own_sentences_stay(tmp_path):
    card = read_card(write_tiny(tmp_path))

    def build(config):
        raise OptionError("There is no encoder named 'x'; choose one of a, b.")

    with pytest.raises(ModelError, match="no encoder named 'x'"):
        load_model(card, build=build)
