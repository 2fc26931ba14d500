"""Cards: read without torch, every wrong field named, nothing outside the folder reachable."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from HiEndSegLib.errors import ModelError, OutputError
from HiEndSegLib.models.card import (MAX_CARD_BYTES, card_from_bytes, card_from_dict, card_to_dict, read_card,
                                     verify_weights, write_card)
from tiny_models import LABELS, card_dict, write_bytes_model


def test_a_card_survives_writing_and_reading(tmp_path):
    folder = write_bytes_model(tmp_path / "tiny")
    card = read_card(folder)
    assert card.key == "tiny@1.0.0" and card.spacing == (3.0, 3.0, 3.0) and card.tile == (24, 24, 24)
    assert [label.id for label in card.labels] == ["liver", "kidney_left"]
    assert card.labels[1].terminology["modifier"] == ["SCT", "7771000", "Left"]
    assert card.labels[0].largest_component and not card.labels[1].largest_component
    assert card.folder == folder and verify_weights(card) == folder / "weights.safetensors"
    assert card_from_dict(card_to_dict(card), folder) == card
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_label_is_found_by_id_and_by_value():
    card = card_from_dict(card_dict())
    assert card.label("kidney_left") is card.label(2)
    with pytest.raises(ModelError, match="liver, kidney_left"):
        card.label("spleen")


def _labels(index, **changes):
    labels = [dict(label) for label in LABELS]
    labels[index].update(changes)
    return labels


def _weights(**changes):
    return {**card_dict()["weights"], **changes}


@pytest.mark.parametrize("changes, words", [
    ({"format": "other"}, "field format must be 'hiendseg-model'"),
    ({"format_version": 3}, "install a newer HiEndSeg"),
    ({"format_version": 2}, "field adaptation belongs to cards of format version 2"),
    ({"id": "Ti ny"}, "field id is not written"),
    ({"id": "../tiny"}, "field id"),
    ({"version": "newest"}, "field version"),
    ({"title": ""}, "field title must have at least 1 characters"),
    ({"title": "\x1b[31mred"}, "field title holds control characters"),
    ({"title": "\ud800"}, "field title holds control characters"),
    ({"modality": "PET"}, "field modality must be one of CT, MR"),
    ({"network": {}}, "field network.kind is missing"),
    ({"network": {"kind": "maskmed", "vit": {"depth": 100000000}}}, "field network"),
    ({"network": {"kind": "maskmed", "depth": 5000}}, "network.depth is 5000"),
    ({"spacing": [3, 0, 3]}, r"field spacing\[1\] must be at least 0.1"),
    ({"spacing": [3, 3]}, "field spacing must have at least 3 entries"),
    ({"spacing": "3"}, "field spacing must be of type array"),
    ({"tile": [96, 96, 4096]}, r"field tile\[2\] must be at most 512"),
    ({"tile": [96, 96, 95.5]}, r"field tile\[2\] must be of type integer"),
    ({"overlap": 1}, "field overlap must be at most 0.9"),
    ({"intensity": {"unit": "HU", "windows": []}}, "field intensity.windows"),
    ({"intensity": {"unit": "HU", "windows": [[-175, 250], [100, 100]]}},
     r"intensity.windows\[1\] must go from a lower"),
    ({"labels": []}, "field labels must have at least 1"),
    ({"labels": _labels(1, value=3)}, "without gap or repetition, and they are 1, 3"),
    ({"labels": _labels(1, value=1)}, "without gap or repetition, and they are 1, 1"),
    ({"labels": _labels(1, id="liver")}, "'liver' is used more than once"),
    ({"labels": _labels(1, id="Left kidney")}, r"field labels\[1\].id"),
    ({"labels": _labels(0, color=[0, 300, 0])}, r"field labels\[0\].color\[1\] must be at most 255, and it is 300"),
    ({"labels": _labels(0, terminology={"category": ["SCT", "1", "a~b"], "type": ["SCT", "2", "x"]})},
     r"field labels\[0\].terminology.category\[2\]"),
    ({"labels": _labels(0, colour=[1, 2, 3])}, r"field labels\[0\] has an unknown entry 'colour'"),
    ({"weights": _weights(file="../../etc/passwd")}, "weights.file .* points outside the model's own folder"),
    ({"weights": _weights(file="/etc/passwd")}, "points outside"),
    ({"weights": _weights(file="C:weights.safetensors")}, "points outside"),
    ({"weights": _weights(file="weights.pt")}, "field weights.file is not written"),
    ({"weights": _weights(sha256="abc")}, "field weights.sha256"),
    ({"weights": _weights(bytes=10 ** 15)}, "field weights.bytes must be at most"),
    ({"surprise": 1}, "unknown entry 'surprise'"),
])
def test_each_wrong_field_is_named_in_one_sentence(changes, words):
    with pytest.raises(ModelError, match=words) as caught:
        card_from_dict(card_dict(**changes), where="card.json of 'tiny'")
    sentence = str(caught.value)
    assert sentence.startswith("card.json of 'tiny'") and sentence.endswith(".") and "\n" not in sentence
    assert len(sentence) < 500


@pytest.mark.parametrize("missing", ["id", "labels", "weights", "licence", "provenance"])
def test_a_missing_field_is_named(missing):
    data = card_dict()
    del data[missing]
    with pytest.raises(ModelError, match=f"field {missing} is missing"):
        card_from_dict(data)


@pytest.mark.parametrize("raw, words", [
    (b"", "not readable JSON"),
    (b"{", "not readable JSON"),
    (b"\xff\xfe\x00", "not readable JSON"),
    (b"[]", "must be of type object"),
    (b"null", "must be of type object"),
    (b'{"overlap": NaN}', "NaN is not a number"),
    (b'{"id": "a", "id": "b"}', "'id' occurs twice"),
    (b"[" * 200000, "nested too deeply"),
    (b'{"id": ' + b"1" * 5000 + b"}", "not readable JSON"),
    (b" " * (MAX_CARD_BYTES + 1), "larger than 1024 kB"),
])
def test_what_is_no_card_at_all(raw, words):
    with pytest.raises(ModelError, match=words):
        card_from_bytes(raw)


def test_a_huge_card_file_is_not_read_whole(tmp_path):
    with open(tmp_path / "card.json", "wb") as stream:
        stream.truncate(50 * 1024 ** 3)  # sparse
    with pytest.raises(ModelError, match="larger than"):
        read_card(tmp_path)


def test_missing_card_and_weights(tmp_path):
    with pytest.raises(ModelError, match="has no file card.json"):
        read_card(tmp_path)
    folder = write_bytes_model(tmp_path / "tiny")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="has no file weights.safetensors"):
        verify_weights(read_card(folder))


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_that_leave_the_folder_are_refused(tmp_path):
    folder = write_bytes_model(tmp_path / "tiny")
    secret = tmp_path / "secret"
    secret.write_bytes((folder / "weights.safetensors").read_bytes())
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to(secret)
    with pytest.raises(ModelError, match="outside its own folder"):
        verify_weights(read_card(folder))
    (folder / "card.json").rename(tmp_path / "card.json")
    (folder / "card.json").symlink_to(tmp_path / "card.json")
    with pytest.raises(ModelError, match="outside its own folder"):
        read_card(folder)


def test_altered_and_cut_weights(tmp_path):
    folder = write_bytes_model(tmp_path / "tiny", b"0123456789")
    card = read_card(folder)
    (folder / "weights.safetensors").write_bytes(b"0123456780")
    with pytest.raises(ModelError, match="do not match the checksum"):
        verify_weights(card)
    (folder / "weights.safetensors").write_bytes(b"012345678")
    with pytest.raises(ModelError, match="9 bytes instead of 10"):
        verify_weights(card)


def test_writing_refuses_a_wrong_card_and_leaves_the_old_one(tmp_path):
    folder = write_bytes_model(tmp_path / "tiny")
    before = (folder / "card.json").read_bytes()
    card = read_card(folder)
    card.network["depth"] = 10 ** 9
    with pytest.raises(ModelError, match="network"):
        write_card(card, folder)
    card = read_card(folder)
    card.training["when"] = float("nan")
    with pytest.raises(OutputError, match="nothing was changed"):
        write_card(card, folder)
    assert (folder / "card.json").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "weights.safetensors"]


def test_names_with_spaces_and_other_letters(tmp_path):
    folder = write_bytes_model(tmp_path / "Modèle für Ärzte 肝", title="Leber — 肝")
    assert read_card(folder).title == "Leber — 肝"
    assert "肝" in json.loads((folder / "card.json").read_text(encoding="utf-8"))["title"]


def test_cards_and_registry_need_no_torch(tmp_path):
    write_bytes_model(tmp_path / "tiny")
    code = ("import sys; sys.modules['torch'] = None\n"
            "from HiEndSegLib.models.registry import Registry\n"
            "registry = Registry(shipped=sys.argv[1], user=sys.argv[2])\n"
            "assert registry.verify().id == 'tiny'\n"
            "assert [c.id for c in registry.list()] == ['tiny'] and not registry.problems")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(tmp_path / "none")], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
