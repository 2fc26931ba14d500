"""Teaching sets: kept when asked, read with every size checked, forgotten with one call, never given away."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import stat
import zipfile

import numpy as np
import pytest
from tiny_models import write_bytes_model

from HiEndSegLib.errors import ModelError, OutputError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models import teaching
from HiEndSegLib.models.card import read_card
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.models.teaching import (TeachingCase, case_fingerprint, forget_teaching, has_teaching, read_teaching,
                                         with_case, without, write_teaching)


def case(number=0, shape=(6, 5, 4), **changes):
    generator = np.random.default_rng(number)
    return dataclasses.replace(TeachingCase(
        fingerprint=f"{number:016x}", image=generator.integers(-1000, 1000, shape).astype(np.int16),
        labels=generator.choice([0, 1, 9, 255], shape).astype(np.uint8), ids={1: "liver", 9: "kidney_left"},
        spacing=(3.0, 3.0, 2.5), held_out=((0, 1), (3, 4))), **changes)


@pytest.fixture
def card(tmp_path):
    return read_card(write_bytes_model(tmp_path / "user" / "tiny"))


def equal(one, other):
    return (one.fingerprint, one.ids, one.spacing, one.held_out) == (
        other.fingerprint, other.ids, other.spacing, other.held_out) and np.array_equal(
        one.image, other.image) and np.array_equal(one.labels, other.labels)


def test_cases_come_back_as_they_were_and_can_be_forgotten(card):
    assert read_teaching(card) == [] and not has_teaching(card) and not forget_teaching(card)
    cases = [case(1), case(2, (3, 7, 9)), case(2)]
    path = write_teaching(cases, card.folder)
    back = read_teaching(card)
    assert len(back) == 3 and all(equal(*pair) for pair in zip(cases, back)) and has_teaching(card)
    assert back[0].image.dtype == np.int16 and back[0].labels.dtype == np.uint8
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, "a patient's image is for its user alone"
    assert forget_teaching(card) and not has_teaching(card) and read_teaching(card) == []
    assert sorted(entry.name for entry in card.folder.iterdir()) == ["card.json", "weights.safetensors"]


def test_a_case_taught_again_replaces_what_was_kept_of_it_and_the_oldest_give_way(monkeypatch):
    first, second, again = case(1), case(2), case(1, (2, 2, 2))
    kept = with_case([first, second], [again, case(1, (3, 3, 3))])
    assert [(entry.fingerprint[-1], entry.image.shape[0]) for entry in kept] == [("2", 6), ("1", 2), ("1", 3)]
    assert len(with_case([case(number) for number in range(70)], [case(99)])) == 64
    monkeypatch.setattr(teaching, "MAX_SET_VOXELS", 250)                                    # each has 120
    assert [entry.fingerprint[-1] for entry in with_case([first, second], [case(3)])] == ["2", "3"]
    assert with_case([case(4, (7, 7, 7))]) == []


def test_a_fingerprint_is_of_the_image_and_not_of_the_file():
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6))
    volume = Volume(array.astype(np.int16), np.diag([2.0, 2, 3, 1]), name="Anna")
    flipped = np.diag([-2.0, 2, 3, 1])
    flipped[0, 3] = 6
    print_ = case_fingerprint(volume)
    assert print_ == case_fingerprint(Volume(array[::-1].astype(np.float64), flipped, name="Berta"))
    other = array.copy()
    other[0, 0, 0] += 1
    assert len({print_, case_fingerprint(Volume(other, volume.ijk_to_ras)),
                case_fingerprint(Volume(array, np.diag([2.0, 2, 4, 1]))),
                case_fingerprint(Volume(array.reshape(5, 4, 6), volume.ijk_to_ras))}) == 4
    assert len(print_) == 64


@pytest.mark.parametrize("changes, words", [
    ({"labels": np.zeros((6, 5, 3), np.uint8)}, "labels of 6 x 5 x 3"),
    ({"image": np.zeros((6, 5, 4), np.float32)}, "of type float32"),
    ({"labels": np.zeros((6, 5, 4), np.int64)}, "of type int64"),
    ({"image": np.zeros((6, 5), np.int16), "labels": np.zeros((6, 5), np.uint8)}, "three edges"),
    ({"image": np.zeros((6, 0, 4), np.int16), "labels": np.zeros((6, 0, 4), np.uint8)}, "three edges"),
    ({"ids": {1: "liver"}}, "labels of value 9"),
    ({"ids": {1: "liver", 9: "Left kidney"}}, "ids"),
    ({"ids": {1: "liver", 9: "kidney_left", 255: "open"}}, "between 1 and 254"),
    ({"ids": {0: "none", 1: "liver", 9: "kidney_left"}}, "between 1 and 254"),
    ({"fingerprint": "Anna"}, "fingerprint"),
    ({"spacing": (3.0, 3.0, 0.0)}, "spacing"),
    ({"held_out": ((3, 3),)}, "from a lower to a higher"),
])
def test_a_case_that_cannot_be_kept_is_refused_and_the_old_set_stays(card, changes, words):
    write_teaching([case(1)], card.folder)
    with pytest.raises(ModelError, match=words):
        write_teaching([case(2, **changes)], card.folder)
    assert [entry.fingerprint[-1] for entry in read_teaching(card)] == ["1"]


def test_more_than_a_set_may_hold(card, monkeypatch):
    with pytest.raises(ModelError, match="cases must have at most 64"):
        write_teaching([case(number) for number in range(65)], card.folder)
    monkeypatch.setattr(teaching, "MAX_CASE_VOXELS", 100)
    with pytest.raises(ModelError, match="at most 100 voxels"):
        write_teaching([case()], card.folder)
    monkeypatch.undo()
    monkeypatch.setattr(teaching, "MAX_SET_VOXELS", 200)
    with pytest.raises(ModelError, match="240 voxels, more than the 200"):
        write_teaching([case(1), case(2)], card.folder)
    assert not has_teaching(card)


def test_a_full_disk_and_a_file_that_cannot_be_deleted(card, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_teaching([case()], card.folder)
    monkeypatch.undo()
    assert not has_teaching(card) and len(list(card.folder.iterdir())) == 2
    (card.folder / "teaching.npz").mkdir()
    with pytest.raises(OutputError, match="could not be deleted"):
        forget_teaching(card)


# ------------------------------------------------------------------------------------------------ hostile files


def meta(**changes):
    entry = {"fingerprint": "0" * 16, "spacing": [3, 3, 3], "ids": {"1": "liver"}, "held_out": [], **changes}
    return {"format": "hiendseg-teaching", "format_version": 1, "cases": [entry]}


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), **options)
    return stream.getvalue()


def lying(shape, dtype, content=b"\0" * 64):
    """An array file whose header promises more than there is."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


def pack(card, **members):
    content = {"meta": npy(np.frombuffer(json.dumps(meta()).encode(), np.uint8)),
               "image_0": npy(np.zeros((2, 2, 2), np.int16)), "labels_0": npy(np.zeros((2, 2, 2), np.uint8)), **members}
    with zipfile.ZipFile(card.folder / "teaching.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in content.items():
            if raw is not None:
                archive.writestr(f"{name}.npy", raw)


def described(**changes):
    return npy(np.frombuffer(json.dumps(meta(**changes)).encode(), np.uint8))


class Evil:
    def __reduce__(self):
        return os._exit, (3,)


HOSTILE = {
    "pickle": (lambda: {"image_0": npy(np.array([Evil()], object), allow_pickle=True)}, "three edges|pickle|type"),
    "a pickle of three edges": (lambda: {"image_0": npy(np.full((2, 2, 2), Evil(), object), allow_pickle=True)},
                                "of type object"),
    "pickled description": (lambda: {"meta": npy(np.array([Evil()], object), allow_pickle=True)},
                            "no readable description"),
    "giant": (lambda: {"image_0": lying((10 ** 5, 10 ** 5, 10 ** 5), "<i2"),
                       "labels_0": lying((10 ** 5, 10 ** 5, 10 ** 5), "|u1")}, "three edges and at most"),
    "overflowing": (lambda: {"image_0": lying((2 ** 40, 2 ** 40, 1), "<i2"),
                             "labels_0": lying((2 ** 40, 2 ** 40, 1), "|u1")}, "three edges and at most"),
    "negative": (lambda: {"image_0": lying((-2, -2, 2), "<i2"), "labels_0": lying((-2, -2, 2), "|u1")},
                 "three edges|damaged"),
    "cut": (lambda: {"image_0": lying((64, 64, 64), "<i2"), "labels_0": lying((64, 64, 64), "|u1")}, "damaged"),
    "another shape": (lambda: {"labels_0": npy(np.zeros((2, 2, 3), np.uint8))}, "the two must be equal"),
    "another type": (lambda: {"image_0": npy(np.zeros((2, 2, 2)))}, "of type float64"),
    "records": (lambda: {"image_0": npy(np.zeros((2, 2, 2), [("a", "<i2")]))}, "of type"),
    "an unknown value": (lambda: {"labels_0": npy(np.full((2, 2, 2), 7, np.uint8))}, "value 7 that no structure has"),
    "missing": (lambda: {"labels_0": None}, "other entries"),
    "left over": (lambda: {"image_1": npy(np.zeros(3))}, "other entries"),
    "crowd": (lambda: {f"x{number}": b"" for number in range(200)}, "203 entries"),
    "no description": (lambda: {"meta": None}, "is not one"),
    "a long header": (lambda: {"image_0": b"\x93NUMPY\x02\x00" + (2 ** 31).to_bytes(4, "little") + b" " * 100},
                      "another array format"),
    "no array": (lambda: {"image_0": b"hello"}, "damaged"),
    "a long description": (lambda: {"meta": lying((10 ** 9,), "|u1")}, "no readable description"),
    "no json": (lambda: {"meta": npy(np.frombuffer(b"{", np.uint8))}, "not readable JSON"),
    "nested": (lambda: {"meta": npy(np.frombuffer(b"[" * 100000, np.uint8))}, "nested too deeply"),
    "a path for an id": (lambda: {"meta": described(ids={"1": "../../x"})}, "ids"),
    "an infinite spacing": (lambda: {"meta": npy(np.frombuffer(json.dumps(meta(spacing=[1, 1, float("inf")])).encode(),
                                                               np.uint8))}, "not a number that JSON allows"),
    "a later format": (lambda: {"meta": npy(np.frombuffer(json.dumps({**meta(), "format_version": 2}).encode(),
                                                          np.uint8))}, "install a newer HiEndSeg"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_sets_end_in_a_sentence(card, kind):
    members, words = HOSTILE[kind]
    pack(card, **members())
    with pytest.raises(ModelError, match=words) as caught:
        read_teaching(card)
    assert "\n" not in str(caught.value)
    assert forget_teaching(card)


def test_what_is_no_zip_or_a_link_elsewhere(card, tmp_path):
    path = card.folder / "teaching.npz"
    pack(card)
    assert len(read_teaching(card)) == 1
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-40], whole[:40] + whole[60:]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="damaged"):
            read_teaching(card)
    if os.name != "nt":
        path.unlink()
        (tmp_path / "secret.npz").write_bytes(whole)
        path.symlink_to(tmp_path / "secret.npz")
        with pytest.raises(ModelError, match="outside its own folder"):
            read_teaching(card)
        assert forget_teaching(card) and (tmp_path / "secret.npz").exists()


def test_adding_a_folder_leaves_its_teaching_set_behind(card, tmp_path):
    write_teaching([case()], card.folder)
    added = Registry(tmp_path / "none", tmp_path / "mine").add(card.folder)
    assert sorted(entry.name for entry in added.folder.iterdir()) == ["card.json", "weights.safetensors"]


def test_another_structure_of_a_case_does_not_replace_what_was_kept_of_it():
    first = case(1)
    second = case(1, labels=np.where(case(1).labels == 9, 5, 0).astype(np.uint8), ids={5: "kidney_left"})
    rest, new = with_case([first], [second])
    assert rest.ids == {1: "liver"} and new.ids == {5: "kidney_left"} and rest.held_out == first.held_out
    assert set(np.unique(rest.labels)) == {0, 1, 255} and (rest.labels[first.labels == 9] == 0).all()
    assert without(first, ["spleen"]) is first and without(first, ["liver", "kidney_left"]) is None


def test_the_set_of_the_nearest_ancestor_counts_and_forgetting_reaches_every_copy(tmp_path, monkeypatch):
    cards = [dataclasses.replace(read_card(write_bytes_model(tmp_path / "user" / name)), id=name) for name in "abcd"]
    a, b, c, d = cards
    monkeypatch.setattr(teaching, "find_parent", lambda card, _cards: {c.key: b, b.key: a}.get(card.key))
    assert teaching.kept_for(c, cards) is None
    write_teaching([case(1)], a.folder)
    assert teaching.kept_for(c, cards) is a and teaching.kept_for(a, cards) is a and teaching.kept_for(d, cards) is None
    write_teaching([case(1), case(2)], b.folder)
    write_teaching([case(1)], d.folder)
    assert teaching.kept_for(c, cards) is b
    (c.folder / "teaching.npz").write_bytes(b"damaged")
    assert teaching.forget_cases(a, cards)
    assert [entry.fingerprint for entry in read_teaching(b)] == [case(2).fingerprint], "of its own case nothing is lost"
    assert not has_teaching(a) and not has_teaching(d) and has_teaching(c)
    assert not teaching.forget_cases(a, cards)
