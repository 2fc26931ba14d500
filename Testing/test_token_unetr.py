"""The light decoder: shapes, that every parameter takes part, and that detail reaches single voxels."""

import pytest
import torch
import torch.nn.functional as F

from HiEndSegLib.networks.token_unetr import TokenUNETR

VIT = dict(embed_dim=24, depth=4, num_heads=2, patch_size=12, img_size=24)


def tiny(**more):
    torch.manual_seed(0)
    return TokenUNETR(out_channels=3, vit={**VIT, **more}, taps=(1, 2, 3), channels=(16, 16, 8))


def test_every_parameter_takes_part_for_any_grid():
    network = tiny()
    torch.nn.init.normal_(network.detail.weight, std=0.1)
    logits = network(torch.rand(2, 1, 24, 36, 12))
    assert logits.shape == (2, 3, 24, 36, 12)
    logits.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_it_learns_a_plane_through_the_middle_of_a_patch():
    """A border that is no border of tokens or of map voxels (3 voxels): only sub-pixel detail can draw it."""
    network = tiny()
    x = torch.zeros(1, 1, 24, 24, 24)
    x[..., 7:, :, :] = 1
    target = (x[:, 0] > 0).long()
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(60):
        loss = F.cross_entropy(network(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.equal(network(x).argmax(1), target)


def test_a_patch_that_cannot_be_folded_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        tiny(patch_size=6)
