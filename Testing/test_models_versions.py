"""Versions: what one adaptation changed, merged on loading, flattened onto the base, refused where it does not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from version_models import CASE, NETWORK, REPORT, THREE, TWO, adaptation, build_small, factors, shelf, write_base

from HiEndSegLib.errors import ModelError
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.models.card import card_from_dict, card_to_dict, describe_weights, read_card, write_card
from HiEndSegLib.models.loading import load_model
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.models.versions import check_before, export_version, write_version, write_whole


@pytest.fixture
def registry(tmp_path):
    return shelf(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def load(card, registry):
    return load_model(card, build=build_small, registry=registry).network.state_dict()


def changed(state, adapted):
    """By hand, in float32: what an adaptation makes of a state."""
    state = {name: tensor.float() for name, tensor in state.items()}
    for name, (a, b) in adapted["low_rank"].items():
        state[name] = state[name] + (b @ a).reshape(state[name].shape)
    return {**state, **adapted["replaced"]}


def same(one, other, tolerance=2e-3):
    assert set(one) == set(other)
    for name in one:
        assert torch.allclose(one[name].float(), other[name].float(), atol=tolerance), name


# ------------------------------------------------------------------------------------------------ writing, loading


def test_a_version_is_its_parent_with_the_changes_and_small(registry):
    base = registry.get("base")
    before = {path.name: path.read_bytes() for path in base.folder.iterdir()}
    adapted = adaptation("Liver of my clinic")
    card = write_version(base, registry=registry, **adapted)
    assert card.key == "liver-of-my-clinic@1.0.0" and card.title == "Liver of my clinic" and card.is_version
    assert card == read_card(card.folder) == registry.get("liver-of-my-clinic") and not card.default
    same(load(card, registry), changed(load(base, registry), adapted))
    assert names(card.folder) == ["card.json", "weights.safetensors"] and names(registry.user) == [card.key]
    assert set(load_file(card.weights_path)) == {"low_rank.first.weight.a", "low_rank.first.weight.b",
                                                 "replace.last.bias"}
    assert {path.name: path.read_bytes() for path in base.folder.iterdir()} == before, "the parent is never touched"
    assert (registry.base_of(card).key, registry.parent_of(card).key) == ("base@1.0.0", "base@1.0.0")
    assert registry.versions_of(base) == [card]


def test_the_card_says_where_it_comes_from_and_nothing_of_the_patient(registry):
    report = {**REPORT, "seconds": float("nan"), "held_out_mm": ((1.0, 2.0),), "best_step": torch.tensor(7),
              "taught": [*REPORT["taught"], {"id": "kidney_left", "name": "Left kidney", "dice_after": None}]}
    card = write_version(registry.get(), registry=registry, **adaptation("A", report=report))
    told = json.loads((card.folder / "card.json").read_text(encoding="utf-8"))
    base = registry.get("base")
    where = {"id": "base", "version": "1.0.0", "sha256": base.checksum, "title": "Base"}
    assert told["format_version"] == 2
    assert told["adaptation"] == {
        "base": where, "parent": where, "name": "A", "date": "2026-09-01T10:00:00+02:00", "case": CASE,
        "parameters": {"speed": "quick", "steps": 100}, "teaching_cases": 0,
        "report": {**report, "seconds": None, "held_out_mm": [[1.0, 2.0]], "best_step": 7}}
    assert "Adapted from Base (base@1.0.0) on 2026-09-01" in card.description
    assert "taught: Liver, Left kidney." in card.description
    assert card.scores == [{"case": "held-out slices of the case it learned from", "structure": "liver", "dice": 0.75,
                            "trained_on": True}]
    for field in ("licence", "modality", "spacing", "tile", "overlap", "windows"):
        assert getattr(card, field) == getattr(base, field)


def test_an_adapted_version_adapted_again_is_one_delta_over_the_same_base(registry):
    base = registry.get()
    one = adaptation("One", 1)
    first = write_version(base, registry=registry, **one)
    two = adaptation("Two", 2, replaced={})
    second = write_version(first, registry=registry, **two)
    three = adaptation("Three", 3, low_rank={}, replaced={"last.weight": torch.ones(3, 8, 1, 1, 1)})
    third = write_version(second, registry=registry, **three)
    by_hand = changed(load(base, registry), one)
    same(load(first, registry), by_hand)
    by_hand = changed(by_hand, two)
    same(load(second, registry), by_hand)
    same(load(third, registry), changed(by_hand, three))
    assert load_file(second.weights_path)["low_rank.first.weight.a"].shape == (4, 27), "factors are concatenated"
    assert third.adaptation["base"]["id"] == "base" and third.adaptation["parent"]["id"] == "two"
    assert [card.key for card in registry.versions_of(second)] == ["three@1.0.0"]
    assert len(registry.versions_of(base)) == 3

    same(two_step := load(third, registry), two_step)
    registry.remove("one")
    registry.remove("two")                  # somebody's parents, and not needed
    assert registry.parent_of(third) is None
    after = load(registry.get("three"), registry)
    assert all(torch.equal(after[name], two_step[name]) for name in after)


def test_what_is_replaced_wins_and_what_was_replaced_can_be_changed_by_factors(registry):
    base = registry.get()
    whole = torch.full((8, 1, 3, 3, 3), 0.125)
    one = adaptation("One", 1, low_rank={}, replaced={"first.weight": whole})
    first = write_version(base, registry=registry, **one)
    two = adaptation("Two", 2, replaced={})
    second = write_version(first, registry=registry, **two)
    same(load(second, registry), changed(changed(load(base, registry), one), two))
    assert set(load_file(second.weights_path)) == {"replace.first.weight"}
    third = write_version(write_version(base, registry=registry, **adaptation("Three", 3)), registry=registry,
                          **adaptation("Four", 4, low_rank={}, replaced={"first.weight": whole}))
    assert torch.equal(load(third, registry)["first.weight"], whole)
    assert set(load_file(third.weights_path)) == {"replace.first.weight", "replace.last.bias"}


def test_adapting_again_and_again_costs_no_more_than_the_base(registry):
    card, by_hand = registry.get(), load(registry.get(), registry)
    for number in range(1, 6):
        adapted = adaptation(f"Number {number}", number, low_rank={"first.weight": factors(number, rank=3)})
        by_hand = changed(by_hand, adapted)
        card = write_version(card, registry=registry, **adapted)
    assert "replace.first.weight" in load_file(card.weights_path)
    assert card.weights["bytes"] < registry.get("base").weights["bytes"] + 200
    same(load(card, registry), by_hand, 1e-2)


def test_new_structures_bring_their_own_classes(registry):
    base = registry.get()
    grown = {"last.weight": torch.randn(4, 8, 1, 1, 1), "last.bias": torch.zeros(4)}
    first = write_version(base, registry=registry, **adaptation(
        "Spleen", network={**NETWORK, "num_classes": 4}, labels=THREE, replaced=grown))
    model = load_model(first, build=build_small, registry=registry)
    assert model.network.scores(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 4, 4, 4, 4)
    assert [label.id for label in first.labels] == ["liver", "kidney_left", "spleen"] and len(base.labels) == 2
    second = write_version(first, registry=registry, **adaptation(
        "Spleen again", 2, network=first.network, labels=first.labels,
        replaced={"last.bias": torch.ones(4)}, low_rank={"last.weight": factors(5, 1, (4, 8))}))
    state = load(second, registry)
    assert state["last.weight"].shape == (4, 8, 1, 1, 1) and torch.equal(state["last.bias"], torch.ones(4))
    with pytest.raises(ModelError, match="do not fit the network"):
        write_version(base, registry=registry, **adaptation("Forgotten", replaced=grown))
    with pytest.raises(ModelError, match="names 2 structures and its network has 4 classes"):
        write_version(base, registry=registry, **adaptation("Nameless", replaced=grown,
                                                            network={**NETWORK, "num_classes": 4}))
    assert names(registry.user) == ["spleen-again@1.0.0", "spleen@1.0.0"]


def test_a_model_from_an_encoder_is_a_whole_model_of_the_first_format(registry):
    torch.manual_seed(3)
    network = build_small(NETWORK)
    memory = dataclasses.replace(registry.get(), id="fresh", folder=None, training={"encoder": "Hi-End-MAE"})
    card = write_whole(memory, registry=registry, name="From the encoder", network=NETWORK, labels=TWO, state=network,
                       report=REPORT, case=CASE, parameters={"steps": 3}, build=build_small)
    assert card.key == "from-the-encoder@1.0.0" and not card.is_version and registry.base_of(card) == card
    assert json.loads((card.folder / "card.json").read_text())["format_version"] == 1
    assert card.training["encoder"] == "Hi-End-MAE" and card.training["report"]["better"]
    same(load(card, registry), network.state_dict())
    version = write_version(card, registry=registry, **adaptation("Its version"))
    assert registry.parent_of(version) == card
    with pytest.raises(ModelError, match="needed by Its version"):
        registry.remove(card.key)
    registry.remove(version.key)
    registry.remove(card.key)
    assert names(registry.user) == []


def test_the_base_is_found_beside_the_version_without_being_told(registry, tmp_path):
    beside = Registry(tmp_path / "none", tmp_path / "lab")
    base = write_base(tmp_path / "lab" / "base")
    card = write_version(base, registry=beside, **adaptation("A"))
    assert load_model(card, build=build_small).card == card


# ------------------------------------------------------------------------------------------------ what is not right


def test_a_base_that_was_deleted_is_named(registry):
    card = write_version(registry.get(), registry=registry, **adaptation("A"))
    shutil.rmtree(registry.shipped / "base")
    words = r"A \(a@1.0.0\) consists of changes to the model base@1.0.0, which is not installed; add that model first"
    for attempt in (lambda: load(card, registry), lambda: registry.base_of(card), lambda: registry.get("a"),
                    lambda: write_version(card, registry=registry, **adaptation("B"))):
        with pytest.raises(ModelError, match=words):
            attempt()
    assert registry.list() == [] and len(registry.problems) == 1
    registry.remove("a")
    assert names(registry.user) == []


def test_a_base_that_was_changed_since_is_told_from_the_right_one(registry):
    card = write_version(registry.get(), registry=registry, **adaptation("A"))
    former = registry.get("base").checksum
    write_base(registry.shipped / "base", seed=5)
    with pytest.raises(ModelError, match=f"checksum {former[:12]}…, and the one installed here has .*changed since"):
        load(card, registry)
    write_base(registry.user / "copy", id="copy", version="7")      # the very weights under another name
    assert registry.base_of(card).key == "copy@7" and load(card, registry)
    with pytest.raises(ModelError, match=r"needed by A \(a@1.0.0\), which is made of changes to it"):
        registry.remove("copy")


def test_altered_bytes_of_base_or_version_are_not_opened(registry):
    card = write_version(registry.get(), registry=registry, **adaptation("A"))
    for path, words in ((card.weights_path, "a@1.0.0 do not match the checksum"),
                        (registry.get("base").weights_path, "base@1.0.0 do not match the checksum")):
        sound = path.read_bytes()
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        for attempt in (lambda: load(card, registry), lambda: registry.verify("a"),
                        lambda: write_version(card, registry=registry, **adaptation("B"))):
            with pytest.raises(ModelError, match=words):
                attempt()
        path.write_bytes(sound[:-3])
        attempts = [lambda: load(card, registry)]
        if path != card.weights_path:
            attempts.append(lambda: check_before(card, name="B", registry=registry))
        for attempt in attempts:
            with pytest.raises(ModelError, match=f"have {len(sound) - 3} bytes instead of {len(sound)}"):
                attempt()
        path.write_bytes(sound)
    assert registry.verify("a") == card


def test_a_parent_that_is_gone_or_another_now_is_said_before_and_after_training(registry, tmp_path):
    parent = registry.get()
    assert check_before(parent, name=" My  liver ", registry=registry) == "My  liver"
    write_base(registry.shipped / "base", seed=5)
    for attempt in (lambda: check_before(parent, name="A", registry=registry),
                    lambda: write_version(parent, registry=registry, **adaptation("A"))):
        with pytest.raises(ModelError, match="was changed on disk since it was opened"):
            attempt()
    shutil.rmtree(registry.shipped / "base")
    with pytest.raises(ModelError, match="not among the installed models"):
        check_before(parent, name="A", registry=registry)
    elsewhere = write_base(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="add it first"):
        write_version(elsewhere, registry=registry, **adaptation("A"))
    assert names(registry.user) == []


def test_a_structure_no_card_could_name_is_said_before_training(registry):
    parent = registry.get()
    good = Label(3, "spleen", "Milz (Süd)", (1, 2, 3))
    assert check_before(parent, name="A", labels=[*TWO, good], registry=registry) == "A"
    for bad in (dataclasses.replace(good, name=""), dataclasses.replace(good, name="x" * 101),
                dataclasses.replace(good, id="Spleen!"), dataclasses.replace(good, color=(1, 2, 300))):
        with pytest.raises(ModelError, match="cannot be taught under this name"):
            check_before(parent, name="A", labels=[good, bad], registry=registry)


def forge(card, **tensors):
    """Other tensors in a version's folder, with the checksum to match."""
    save_file(tensors, card.folder / "weights.safetensors")
    card = dataclasses.replace(card, weights=describe_weights(card.folder / "weights.safetensors", "float16"))
    write_card(card, card.folder)
    return card


ZERO = torch.zeros
FORGED = [      # tensors of the file, and what is said of them
    ({"low_rank.first.weight.a": ZERO(2, 28), "low_rank.first.weight.b": ZERO(8, 2)}, "do not fit its"),
    ({"low_rank.first.weight.a": ZERO(2, 27), "low_rank.first.weight.b": ZERO(8, 3)}, "do not fit its"),
    ({"low_rank.first.weight.a": ZERO(28, 27), "low_rank.first.weight.b": ZERO(8, 28)}, "do not fit its"),
    ({"low_rank.first.weight.a": ZERO(0, 27), "low_rank.first.weight.b": ZERO(8, 0)}, "do not fit its"),
    ({"low_rank.first.weight.a": ZERO(27), "low_rank.first.weight.b": ZERO(8)}, "do not fit its"),
    ({"low_rank.first.weight.a": ZERO(2, 8), "low_rank.first.weight.b": ZERO(27, 2)}, "do not fit its"),
    ({"low_rank.first.weight.a": ZERO(1, 10 ** 6), "low_rank.first.weight.b": ZERO(10 ** 6, 1)}, "do not fit its"),
    ({"low_rank.last.bias.a": ZERO(1, 1), "low_rank.last.bias.b": ZERO(3, 1)}, "do not fit its"),
    ({"low_rank.first.weight.a": ZERO(2, 27)}, "one factor of the change to first.weight"),
    ({"low_rank.head.weight.a": ZERO(2, 4), "low_rank.head.weight.b": ZERO(4, 2)}, "its base does not have"),
    ({"low_rank.last.weight.a": ZERO(1, 8), "low_rank.last.weight.b": ZERO(3, 1),
      "replace.last.weight": ZERO(3, 8, 1, 1, 1)}, "both replace and change last.weight"),
    ({"first.weight": ZERO(8, 1, 3, 3, 3)}, "no change to a model"),
    ({"replace.head.weight": ZERO(2)}, "1 are left over .first: head.weight"),
    ({"replace.last.bias": ZERO(5)}, "last.bias, .5. instead of .3."),
    ({"replace.last.bias": torch.tensor([0.0, float("nan"), 0.0])}, "not finite"),
    ({"low_rank.first.weight.a": torch.full((1, 27), float("inf")), "low_rank.first.weight.b": ZERO(8, 1)},
     "not finite"),
    ({"low_rank.first.weight.a": torch.full((1, 27), 1e30), "low_rank.first.weight.b": torch.full((8, 1), 1e30)},
     "not finite"),
]


@pytest.mark.parametrize("tensors, words", FORGED)
def test_changes_that_are_none_or_for_another_model(registry, tensors, words):
    card = forge(write_version(registry.get(), registry=registry, **adaptation("A")), **tensors)
    with pytest.raises(ModelError, match=words) as caught:
        load(card, registry)
    assert "a@1.0.0" in str(caught.value) and "\n" not in str(caught.value)


def test_cut_and_empty_weights_of_a_version(registry):
    card = write_version(registry.get(), registry=registry, **adaptation("A"))
    path = card.folder / "weights.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:30], b"\0" * 20):
        path.write_bytes(content)
        forged = dataclasses.replace(card, weights=describe_weights(path, "float16"))
        with pytest.raises(ModelError, match="not a readable safetensors file"):
            load(forged, registry)


@pytest.mark.parametrize("changes, words", [
    ({"replaced": {"last.bias": torch.tensor([0.0, float("nan"), 0.0])}}, "not finite"),
    ({"replaced": {"last.bias": torch.tensor([0.0, 1e6, 0.0])}}, "not finite"),
    ({"replaced": {"head.bias": ZERO(3)}}, "left over"),
    ({"low_rank": {"first.weight": factors(1, shape=(8, 28))}}, "do not fit its"),
    ({"low_rank": {"head.weight": factors(1)}}, "its base does not have"),
    ({"case": {"fingerprint": "Anna", "shape": [1, 2, 3], "spacing": [1, 1, 1]}}, "adaptation.case.fingerprint"),
    ({"case": {**CASE, "patient": "Anna"}}, "adaptation.case has an unknown entry"),
    ({"date": "yesterday"}, "adaptation.date"),
    ({"report": {"taught": [{}] * 300}}, "adaptation.report.taught must have at most 254"),
    ({"labels": [*TWO, Label(3, "Spleen", "Spleen", (0, 0, 0))]}, r"labels\[2\].id"),
])
def test_an_adaptation_that_cannot_be_kept_leaves_nothing(registry, changes, words):
    with pytest.raises(ModelError, match=words):
        write_version(registry.get(), registry=registry, **adaptation("A", **changes))
    assert names(registry.user) == []


def test_cards_of_versions_are_checked_like_all_others(registry):
    card = write_version(registry.get(), registry=registry, **adaptation("A"))
    data = card_to_dict(card)
    assert card_from_dict(data, card.folder) == card
    sound = data["adaptation"]
    for changes, words in (({"base": None}, "adaptation.base must be of type object"),
                           ({"base": {**sound["base"], "sha256": "../.."}}, "adaptation.base.sha256"),
                           ({"parent": {**sound["parent"], "id": "../x"}}, "adaptation.parent.id"),
                           ({"name": "x" * 101}, "adaptation.name must have at most 100"),
                           ({"name": "\x1b[31m"}, "control characters"),
                           ({"case": {**CASE, "shape": [1, 2]}}, "adaptation.case.shape"),
                           ({"teaching_cases": -1}, "adaptation.teaching_cases must be at least 0"),
                           ({"surprise": 1}, "unknown entry 'surprise'")):
        with pytest.raises(ModelError, match=words):
            card_from_dict({**data, "adaptation": {**sound, **changes}})
    with pytest.raises(ModelError, match="belongs to cards of format version 2"):
        card_from_dict({**data, "format_version": 1})


# --------------------------------------------------------------------------------------------------- grey values


def test_a_version_of_grey_values_alone_changes_no_weight_and_hands_its_curve_on(registry):
    base, curve = registry.get("base"), [[-100.0, -60.0], [50.0, 90.0], [200.0, 210.5]]
    card = write_version(base, registry=registry, curve=curve, **adaptation("Grey", low_rank={}, replaced={}))
    assert read_card(card.folder).curve == curve and load_file(card.weights_path) == {}
    same(load(card, registry), load(base, registry))
    next_one = write_version(card, registry=registry, **adaptation("Next", 2))
    assert next_one.curve == curve, "as its parent's, where nobody says otherwise"
    straight = write_version(card, registry=registry, curve=[], **adaptation("Straight", 3))
    assert straight.curve == [] and base.curve == []


def test_a_curve_goes_with_an_exported_version(registry, tmp_path, monkeypatch):
    from HiEndSegLib.models import loading

    monkeypatch.setattr(loading, "_default_builder", lambda: build_small)
    curve = [[0.0, 10.0], [100.0, 80.0]]
    card = write_version(registry.get("base"), registry=registry, curve=curve, **adaptation("Grey"))
    for whole in (False, True):
        path = export_version(card, tmp_path / f"{whole}.zip", whole=whole, registry=registry)
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("card.json"))
            assert json.loads(archive.read(name))["intensity"]["curve"] == curve


def test_versions_that_differ_by_their_curves_alone_are_told_apart(registry, tmp_path, monkeypatch):
    from HiEndSegLib.models import loading

    monkeypatch.setattr(loading, "_default_builder", lambda: build_small)
    base, made = registry.get("base"), []
    for number, name in enumerate(("Anna", "Bernd")):
        made.append(write_version(base, registry=registry, curve=[[0.0, 10.0 + number], [100.0, 80.0]],
                                  **adaptation(name, low_rank={}, replaced={})))
    anna, bernd = made
    assert anna.weights["sha256"] == bernd.weights["sha256"] and anna.checksum != bernd.checksum
    child = write_version(bernd, registry=registry, **adaptation("Child", 2))
    assert registry.parent_of(child).key == bernd.key
    assert [card.key for card in registry.versions_of(anna)] == []
    path = export_version(bernd, tmp_path / "bernd.zip", registry=registry)
    registry.remove(child.key)
    registry.remove(bernd.key)
    again = registry.add(path)
    assert again.key == bernd.key and again.curve == bernd.curve, "Anna's weights are the same, she is another version"
    registry.remove(again.key)
    assert registry.parent_of(child) is None, "a parent that is gone is not the next best one"
