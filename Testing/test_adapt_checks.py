"""What is said about a drawing before a model learns from it."""

import subprocess
import sys

import numpy as np
import pytest
from tiny_models import LABELS, card_dict

from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.models.card import card_from_dict
from HiEndSegLib.operations.adapt_checks import look_at_labels, side_pairs

RIGHT = {"value": 3, "id": "kidney_right", "name": "Right kidney", "color": [185, 102, 83]}
CARD = card_from_dict(card_dict(network={"kind": "tiny", "num_classes": 4}, labels=[*LABELS, RIGHT]))
# The drawing's values are other than the card's on purpose.
LEGEND = [Label(7, "liver", "Liver", (0, 0, 0)), Label(8, "kidney_left", "Left kidney", (0, 0, 0)),
          Label(9, "kidney_right", "Right kidney", (0, 0, 0)), Label(10, "fat", "Fat", (0, 0, 0))]


def scene(**blocks):
    """Labels with a 10x10x10 block of each value at a place along i."""
    array = np.zeros((60, 12, 12), np.uint8)
    for value, place in blocks.items():
        array[place:place + 10, 1:11, 1:11] = int(value[1:])
    return array


def look(labels, answer, structures):
    return look_at_labels(labels, answer, LEGEND, CARD, (3, 3, 3), structures)


def test_a_sound_drawing_says_nothing():
    assert look(scene(v7=1), scene(v1=4), ["liver"]) == []


def test_empty_and_tiny_structures_block():
    labels = scene(v7=1)
    labels[50, 5, 5:7] = 8
    empty, tiny = look(labels, None, ["kidney_right", "kidney_left"])
    assert (empty.kind, empty.ids, empty.blocking) == ("empty", ("kidney_right",), True)
    assert "not one voxel" in empty.sentence and "leave it out" in empty.sentence
    assert (tiny.kind, tiny.ids, tiny.blocking) == ("tiny", ("kidney_left",), True)
    assert "2 voxels (0.054 ml)" in tiny.sentence and "at least 0.22 ml" in tiny.sentence


def test_fine_voxels_are_counted_by_what_they_hold():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:4, :4, :4] = 7                                      # 8 mm^3, less than one voxel of the model
    assert [f.kind for f in look_at_labels(labels, None, LEGEND, CARD, (0.5, 0.5, 0.5), ["liver"])] == ["tiny"]


def test_a_structure_outside_the_legend_is_empty():
    assert [f.kind for f in look(scene(v7=1), None, ["stomach"])] == ["empty"]


def test_new_structures_are_named():
    found = look(scene(v10=1), scene(v1=20), ["fat"])
    assert [(f.kind, f.ids, f.blocking) for f in found] == [("new", ("fat",), False)]


def test_no_overlap_with_the_model_s_answer_is_said():
    found = look(scene(v7=1), scene(v1=30), ["liver"])
    assert [f.kind for f in found] == ["no-overlap"] and not found[0].blocking
    assert look(scene(v7=1), scene(v2=30), ["liver"]) == []             # the model does not see a liver at all


def test_an_untouched_answer_is_unchanged():
    found = look(scene(v7=1), scene(v1=1), ["liver"])
    assert [f.kind for f in found] == ["unchanged"] and "1.000" in found[0].sentence
    assert look(scene(v7=1), scene(v1=2), ["liver"]) == []


@pytest.mark.parametrize("drawn", [{"v8": 1, "v9": 40}, {"v8": 1}])
def test_swapped_sides_are_found(drawn):
    """The model sees the left kidney at 40 and the right one at 1; the drawing has it the other way."""
    found = [f for f in look(scene(**drawn), scene(v2=40, v3=1), ["kidney_left"]) if f.kind == "swapped"]
    assert [(f.ids, f.blocking) for f in found] == [(("kidney_left", "kidney_right"), False)]
    assert "100 %" in found[0].sentence


def test_sides_that_agree_or_are_not_taught_are_left_alone():
    kinds = [f.kind for f in look(scene(v8=41, v9=2), scene(v2=40, v3=1), ["kidney_left", "kidney_right"])]
    assert "swapped" not in kinds
    assert look(scene(v7=20, v8=1, v9=40), scene(v1=22, v2=40, v3=1), ["liver"]) == []


def test_pairs_differ_in_one_word():
    assert side_pairs(["lung_left", "rib_left_7", "lung_right", "rib_right_7", "rib_left_8", "leftover"]) == [
        ("lung_left", "lung_right"), ("rib_left_7", "rib_right_7")]


def test_labels_and_answer_must_share_a_lattice():
    with pytest.raises(ValueError, match="one lattice"):
        look_at_labels(np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 4), np.uint8), LEGEND, CARD, (3, 3, 3), [])


def test_a_face_can_ask_without_torch():
    code = "import sys, HiEndSegLib.operations.adapt_checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
