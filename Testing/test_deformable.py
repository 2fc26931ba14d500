"""Deformable attention in 3D: axis order, places, and what FSAD leaves alone."""

import pytest
import torch

from HiEndSegLib.networks.deformable import (FSADTransformer, MultiScaleDeformableAttention3D, reference_points,
                                             sample_level)


def attention_that_looks_at(offset_voxels, *, levels=1, dim=6):
    """One head, one point, identity values: output = the value at reference + offset of the level."""
    layer = MultiScaleDeformableAttention3D(embed_dim=dim, num_heads=1, num_levels=levels, num_points=1)
    with torch.no_grad():
        layer.sampling_offsets.bias.copy_(torch.tensor(offset_voxels, dtype=torch.float32).repeat(levels))
        for linear in (layer.value_proj, layer.output_proj):
            linear.weight.copy_(torch.eye(dim))
    return layer


def coordinate_map(size):
    """A map whose channels 0, 1, 2 hold the voxel's own i, j, k."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    return torch.stack([*axes, *(torch.zeros(size) for _ in range(3))])[None]


def test_sampling_at_voxel_centres_returns_the_voxels():
    size = (4, 5, 6)
    value = coordinate_map(size)
    out = sample_level(value, reference_points(size)[None, :, None])[0, :, :, 0]
    torch.testing.assert_close(out, value[0].flatten(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("offset", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, -1, 2)])
def test_an_offset_moves_along_its_own_axis_in_voxels_of_the_level(offset):
    size = (8, 10, 12)
    layer = attention_that_looks_at(offset)
    reference = reference_points(size)
    with torch.no_grad():
        out = layer(torch.zeros(1, len(reference), 6), reference, [coordinate_map(size)])
    moved = coordinate_map(size)[0, :3].flatten(1).T + torch.tensor(offset)
    inside = ((moved >= 0) & (moved <= torch.tensor(size) - 1.0)).all(1)
    assert inside.sum() > 100
    torch.testing.assert_close(out[0, inside, :3], moved[inside], atol=1e-4, rtol=0)


def test_the_same_place_is_found_on_levels_of_other_sizes():
    """A bright blob at one place: the query above it sees it on the fine and on the coarse level."""
    layer = attention_that_looks_at((0, 0, 0), levels=2)
    fine, coarse = torch.zeros(1, 6, 12, 8, 16), torch.zeros(1, 6, 6, 4, 8)
    fine[..., 4:6, 2:4, 10:12] = 1
    coarse[..., 2, 1, 5] = 1
    reference = reference_points((6, 4, 8))
    with torch.no_grad():
        out = layer(torch.zeros(1, len(reference), 6), reference, [fine, coarse])[0, :, 0].reshape(6, 4, 8)
    assert out[2, 1, 5] == pytest.approx(1.0, abs=1e-5)
    assert torch.nonzero(out > 0.5).tolist() == [[2, 1, 5]]


def test_outside_the_map_there_is_nothing():
    layer = attention_that_looks_at((100, 0, 0))
    reference = reference_points((4, 4, 4))
    with torch.no_grad():
        assert layer(torch.zeros(1, 64, 6), reference, [torch.ones(1, 6, 4, 4, 4)]).abs().max() == 0


def test_heads_start_in_distinct_directions():
    layer = MultiScaleDeformableAttention3D(embed_dim=48, num_heads=8, num_levels=2, num_points=4)
    first = layer.sampling_offsets.bias.reshape(8, 2, 4, 3)[:, 0, 0]
    assert len({tuple(row.tolist()) for row in first}) == 8
    assert first.abs().amax(1).tolist() == [1.0] * 8


def test_fsad_starts_as_the_identity_and_keeps_shapes():
    net = FSADTransformer(in_channels=[4, 8, 12], query_levels=2, embed_dim=12, num_heads=2, num_points=2, depth=2)
    maps = [torch.randn(2, 4, 8, 8, 12), torch.randn(2, 8, 4, 4, 6), torch.randn(2, 12, 2, 2, 3)]
    refined = net(maps)
    assert [r.shape for r in refined] == [m.shape for m in maps[1:]]
    for before, after in zip(maps[1:], refined):
        assert torch.equal(before, after)


def test_the_finest_level_reaches_the_queries():
    """Gradient of a coarse output with respect to the finest map: values come from the full hierarchy."""
    torch.manual_seed(0)
    net = FSADTransformer(in_channels=[4, 8], query_levels=1, embed_dim=12, num_heads=2, num_points=2, depth=1)
    torch.nn.init.normal_(net.output_proj[0].weight)
    fine = torch.randn(1, 4, 8, 8, 8, requires_grad=True)
    net([fine, torch.randn(1, 8, 2, 2, 2)])[0].sum().backward()
    assert fine.grad.abs().sum() > 0


def test_wrong_heads_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        MultiScaleDeformableAttention3D(embed_dim=10, num_heads=3)
    with pytest.raises(ValueError, match="directions"):
        MultiScaleDeformableAttention3D(embed_dim=18, num_heads=9)


def test_sampling_without_gradients_equals_sampling_with_them():
    """Two ways of gathering: by bags when nothing is trained, by grid_sample when something is."""
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention3D(embed_dim=12, num_heads=3, num_levels=3, num_points=4)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    values = [torch.randn(2, 12, *size) for size in ((7, 5, 6), (3, 4, 2), (1, 2, 3))]
    reference = reference_points((3, 4, 5))
    query = torch.randn(2, 60, 12)
    trained = layer(query, reference, values)
    with torch.no_grad():
        free = layer(query, reference, values)
    assert trained.requires_grad and not free.requires_grad and trained.std() > 0.1
    torch.testing.assert_close(free, trained.detach(), atol=1e-5, rtol=1e-5)
