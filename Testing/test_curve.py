"""A model's curve of grey values: what it does to numbers, on a card, and in front of a network."""

from dataclasses import replace

import numpy as np
import pytest
from adapt_phantoms import parent, phantom
from tiny_models import card_dict

from HiEndSegLib.errors import ModelError
from HiEndSegLib.geometry.curve import apply_curve
from HiEndSegLib.models.card import card_from_dict, card_to_dict
from HiEndSegLib.operations.segment import segment
from HiEndSegLib.operations.tiling import cut_tile

CURVE = [[-100, -100], [0, 50], [200, 150]]


def with_curve(curve, **more):
    return card_from_dict(card_dict(intensity={"unit": "HU", "windows": [[-200, 400]], "curve": curve}, **more))


def test_points_and_what_lies_between_and_beyond_them():
    values = np.array([[-900, -100, -50], [0, 100, 1000]], np.int16)
    assert apply_curve(values, CURVE).tolist() == [[-900, -100, -25], [50, 100, 950]]
    assert apply_curve(values, CURVE).dtype == np.float32
    assert apply_curve(values, ()) is values


def test_a_card_keeps_its_curve_and_one_without_has_no_entry():
    card = with_curve(CURVE)
    assert card.curve == CURVE and card_from_dict(card_to_dict(card)) == card
    assert "curve" not in card_to_dict(card_from_dict(card_dict()))["intensity"]


@pytest.mark.parametrize("curve, said", [
    ([[0, 0], [0, 5]], "rising"), ([[5, 0], [0, 5]], "rising"), ([[0, 0]], "2 entries"),
    ([[0, 0], [1, 2, 3]], "entries"),
    ([[0, 0], [1, 1e9]], "at most"), ([[0, 0], ["1", 1]], "number"), ([[n, n] for n in range(65)], "64"),
])
def test_a_curve_that_is_none_is_refused(curve, said):
    with pytest.raises(ModelError, match=said):
        with_curve(curve)


def test_a_tile_is_cut_through_the_curve_and_air_around_stays_air():
    volume = np.full((4, 4, 4), 100.0, np.float32)
    tile = cut_tile(volume, (-2, 0, 0), (4, 4, 4), [(-200, 400)], [[0, 100], [100, 250]])
    assert (tile[0, :2] == 0).all() and tile[0, 2:] == pytest.approx(450 / 600)


def test_a_volume_through_the_curve_is_segmented_as_the_same_volume_with_those_values():
    model, (volume, _) = parent(), phantom(seed=4)
    values = volume.array.astype(np.float32)
    other = volume.with_array(np.where(values > -500, values * 0.5 - 40, values).astype(np.float32))
    undo = [[-1000.0, -1000.0], [-100.0, -120.0], [460.0, 1000.0]]
    plain = segment(model, volume, device="cpu", precision="float32").labels.array
    curved = replace(model, card=replace(model.card, curve=undo))
    found = segment(curved, other, device="cpu", precision="float32").labels.array
    assert len(np.unique(plain)) == 4 and np.mean(found != plain) < 1e-3
    assert np.mean(segment(model, other, device="cpu", precision="float32").labels.array != plain) > 0.01
