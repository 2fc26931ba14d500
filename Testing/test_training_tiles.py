"""Tiles: what the network is shown stays true to the prepared case."""

import numpy as np
import pytest
import torch

from HiEndSegLib.operations.augment import blur
from training.tiles import AIR_HU, Case, TileSampler, load_cases

WINDOWS = [[-175.0, 250.0], [-1000.0, 1000.0]]


def two_block_case(shape=(60, 50, 70)):
    """Class 5 is the bright half towards R (high i), class 1 the darker half; all voxels certain."""
    image = np.full(shape, -400, np.int16)
    possible = np.full(shape, 1 << 1, np.int32)
    image[shape[0] // 2:], possible[shape[0] // 2:] = 200, 1 << 5
    return Case("blocks", image, possible)


def quiet(sampler):
    """The sampler without intensity changes and disease, so that image and labels can be compared."""
    sampler._intensity = lambda image: image
    sampler._add_fluid = lambda image, bits: (image, bits)
    return sampler


def test_labels_move_with_the_image():
    sampler = quiet(TileSampler([two_block_case()], WINDOWS, size=48, seed=3))
    seen = set()
    for _ in range(12):
        x, bits, name = sampler.draw()
        assert x.shape == (2, 48, 48, 48) and bits.shape == (48, 48, 48) and name == "blocks"
        values = set(bits.unique().tolist())
        assert values <= {1, 2, 32}
        seen |= values
        hu = x[1] * 2000 - 1000
        bright, dark = hu > 150, (hu < -350) & (hu > -450)
        assert (bits[bright] == 32).float().mean() > 0.97 if bright.any() else True
        assert (bits[dark] == 2).float().mean() > 0.9 if dark.any() else True
    assert {2, 32} <= seen


def test_left_and_right_are_never_exchanged():
    sampler = quiet(TileSampler([two_block_case()], WINDOWS, size=48, seed=5))
    compared = 0
    for _ in range(20):
        _, bits, _ = sampler.draw()
        i = torch.arange(48.0)[:, None, None].expand(48, 48, 48)
        high, low = bits == 32, bits == 2
        if high.sum() > 500 and low.sum() > 500:
            compared += 1
            assert i[high].mean() > i[low].mean()
    assert compared > 5


def test_beyond_the_volume_is_air_and_certainly_background():
    small = Case("small", np.full((10, 10, 10), 100, np.int16), np.full((10, 10, 10), (1 << 20) - 1, np.int32))
    x, bits, _ = quiet(TileSampler([small], WINDOWS, size=48, seed=0)).draw()
    corner = (slice(0, 4),) * 3
    assert (bits[corner] == 1).all() and x[(slice(None), *corner)].max() == 0
    assert (1 << 20) - 1 in bits.unique().tolist()


def test_all_twenty_bits_survive_resampling():
    rng = np.random.default_rng(0)
    possible = rng.integers(1, 1 << 20, (40, 40, 40)).astype(np.int32)
    case = Case("bits", np.zeros((40, 40, 40), np.int16), possible)
    _, bits, _ = quiet(TileSampler([case], WINDOWS, size=24, seed=1)).draw()
    assert set(bits.unique().tolist()) <= set(np.unique(possible).tolist()) | {1}


def test_the_same_seed_draws_the_same_tile():
    first, second = (TileSampler([two_block_case()], WINDOWS, size=24, seed=7).draw() for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_inputs_stay_in_the_window_and_vary():
    sampler = TileSampler([two_block_case()], WINDOWS, size=24, seed=2)
    tiles = [sampler.draw()[0] for _ in range(6)]
    assert all(t.min() >= 0 and t.max() <= 1 and torch.isfinite(t).all() for t in tiles)
    assert len({round(t.mean().item(), 6) for t in tiles}) == 6


def test_disease_replaces_only_what_is_certain():
    """Masses and fluid turn bowel, fat and rims of organs into background; kidneys and open voxels stay as they are."""
    sampler = TileSampler([two_block_case()], WINDOWS, size=48, seed=11)
    image = torch.full((48, 48, 48), 40.0)
    bits = torch.full((48, 48, 48), 1 << 10)
    image[:16], bits[:16] = 60, 1 << 2
    image[16:24], bits[16:24] = -100, 1
    image[24:32], bits[24:32] = 30, (1 << 20) - 1
    masses = fluids = 0
    for _ in range(60):
        new, after = sampler._add_fluid(image, bits)
        kept = torch.cat([torch.arange(16), torch.arange(24, 32)])
        assert torch.equal(after[kept], bits[kept]) and torch.equal(new[kept], image[kept])
        assert set(after[32:].unique().tolist()) <= {1 << 10, 1} and (after[16:24] == 1).all()
        masses += bool((after[32:] == 1).any())
        fluids += bool((new[16:24] > -50).any())
    assert 5 < masses < 50 and fluids > 5


def test_blur_keeps_the_mean_and_only_its_axes():
    image = torch.zeros(9, 9, 9)
    image[4, 4, 4] = 1
    blurred = blur(image, 0.8, (2,))
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.nonzero(blurred.sum(2)).tolist() == [[4, 4]]


def test_cases_come_from_disk_with_their_weight(tmp_path):
    np.savez(tmp_path / "b.npz", image=np.zeros((4, 4, 4), np.int16), possible=np.ones((4, 4, 4), np.uint32), weight=2.5)
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 4, 4), np.int16), possible=np.full((4, 4, 4), 4, np.uint32))
    cases = load_cases(tmp_path)
    assert [(c.name, c.weight, sorted(c.centres)) for c in cases] == [("a", 1.0, [2]), ("b", 2.5, [])]
    with pytest.raises(FileNotFoundError, match="prepared case"):
        load_cases(tmp_path / "nothing")
    assert AIR_HU == -1024
