"""Mask features in part equal mask features as a whole, and both equal the plain formula."""

import pytest
import torch
import torch.nn.functional as F

from HiEndSegLib.networks.mask_features import FullResolution
from HiEndSegLib.networks.objective import sublattice, wandering
from HiEndSegLib.networks.pyramid import depth_to_space
from HiEndSegLib.networks.resize import linear_weights, resize_trilinear


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = FullResolution(6, 3).double()
    torch.nn.init.normal_(layer.detail.weight)
    torch.nn.init.normal_(layer.detail.bias)
    return layer


def plain(layer, x):
    """Interpolated part plus sub-pixel part, by the library's own operators."""
    smooth = F.interpolate(layer.smooth(x), scale_factor=2.0, mode="trilinear", align_corners=False)
    return smooth + depth_to_space(layer.detail(x))


@pytest.mark.parametrize("old, new", [((8, 8, 8), (12, 12, 12)), ((6, 4, 5), (12, 8, 10)), ((3, 1, 7), (3, 6, 4)),
                                      ((12, 9, 2), (8, 3, 1))])
def test_resizing_by_products_is_trilinear_interpolation(old, new):
    x = torch.randn(2, 3, *old, dtype=torch.float64)
    expected = F.interpolate(x, size=new, mode="trilinear", align_corners=False)
    torch.testing.assert_close(resize_trilinear(x, new), expected, atol=1e-6, rtol=0)


def test_every_row_of_weights_is_an_average():
    for old in range(1, 9):
        for new in range(1, 20):
            weights = linear_weights(old, new)
            assert weights.min() >= 0
            torch.testing.assert_close(weights.sum(1), torch.ones(new))


def test_weights_met_first_while_segmenting_serve_for_training_too():
    x = torch.randn(1, 2, 5, 5, 5, requires_grad=True)
    with torch.inference_mode():
        resize_trilinear(x, (13, 17, 11))
    resize_trilinear(x, (13, 17, 11)).square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_whole_slabs_and_points_agree_with_the_plain_formula(layer):
    x = torch.randn(2, 6, 5, 4, 3, dtype=torch.float64)
    features, expected = layer(x), plain(layer, x)
    assert features.size == (10, 8, 6) and features.channels == 3
    torch.testing.assert_close(features.full(), expected, atol=1e-6, rtol=0)
    for first, last in ((0, 2), (1, 3), (3, 5), (4, 5)):
        torch.testing.assert_close(features.slab(first, last), expected[:, :, 2 * first:2 * last], atol=1e-6, rtol=0)
    i, j, k = torch.tensor([9, 0, 3, 4]), torch.tensor([7, 2]), torch.tensor([1, 1, 5])
    torch.testing.assert_close(features.at(i, j, k), expected[:, :, i][:, :, :, j][..., k], atol=1e-6, rtol=0)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("offset", [(0, 0, 0), (1, 3, 2)])
def test_a_sublattice_of_features_and_its_gradients(layer, offset, stride):
    x = torch.randn(1, 6, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, *(8 // stride,) * 3, dtype=torch.float64)
    gradients = []
    for values in (layer(x).at(*wandering((8, 8, 8), offset, stride)), sublattice(plain(layer, x), offset, stride)):
        gradients.append(torch.autograd.grad((values * weights).square().sum(), [x, *layer.parameters()]))
    for ours, expected in zip(*gradients):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(4, 4, 4), (2, 1, 4), (8, 8, 8), (3, 2, 5)])
def test_averages_over_a_coarser_lattice(layer, size):
    x = torch.randn(2, 6, 8, 8, 8, dtype=torch.float64)
    expected = F.adaptive_avg_pool3d(plain(layer, x), size)
    torch.testing.assert_close(layer(x).pooled(size).double(), expected, atol=1e-5, rtol=0)


def test_parts_keep_the_precision_of_the_map_after_autocast_has_ended(layer):
    layer = layer.float()
    x = torch.randn(1, 6, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        features = layer(x.bfloat16())
    for part in (features.slab(1, 3), features.at(*wandering((8, 8, 8), (0, 1, 2))), features.pooled((2, 2, 2))):
        assert part.dtype == torch.bfloat16
    torch.testing.assert_close(features.full().float(), plain(layer, x).detach(), atol=0.1, rtol=0.05)
