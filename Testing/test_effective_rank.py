"""Effective rank on matrices whose singular values are known, and whose values it is given."""

from __future__ import annotations

import math

import pytest
import torch

from HiEndSegLib.networks.attention import split_qkv
from HiEndSegLib.networks.effective_rank import effective_rank, rank_of_spectrum, singular_values, value_matrices
from HiEndSegLib.networks.vit import VisionTransformer3D


def with_singular_values(values, rows=7, columns=5) -> torch.Tensor:
    """A dense matrix made from random rotations of a diagonal one."""
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64))
    middle = torch.zeros(rows, columns, dtype=torch.float64)
    middle.diagonal()[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return left @ middle @ right


def test_singular_values_of_a_rotated_diagonal():
    values = singular_values(with_singular_values([4.0, 2.0, 1.0]))
    torch.testing.assert_close(values, torch.tensor([4, 2, 1, 0, 0], dtype=torch.float64), atol=1e-12, rtol=0)
    assert singular_values(torch.randn(2, 3, 5, 8, dtype=torch.bfloat16)).shape == (2, 3, 5)
    assert singular_values(torch.ones(3, 3)).dtype == torch.float64


@pytest.mark.parametrize("values, rank", [
    ([3.0], 1.0), ([2.0, 2.0, 2.0, 2.0], 4.0), ([1.0] * 5, 5.0),
    ([1.0, 1.0, 2.0], math.exp(0.25 * math.log(4) * 2 + 0.5 * math.log(2))),  # shares 1/4, 1/4, 1/2
    ([9.0, 1.0], math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))), ([0.0], 0.0)])
def test_effective_rank_by_hand(values, rank):
    assert float(effective_rank(with_singular_values(values))) == pytest.approx(rank, abs=1e-10)
    assert float(effective_rank(with_singular_values(values) * 1000)) == pytest.approx(rank, abs=1e-10)
    assert float(rank_of_spectrum(torch.tensor(values, dtype=torch.float64))) == pytest.approx(rank, abs=1e-12)


def test_a_stack_is_a_matrix_at_a_time():
    stack = torch.stack([with_singular_values([3.0]), with_singular_values([1.0, 1.0])])[None]
    torch.testing.assert_close(effective_rank(stack), torch.tensor([[1.0, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize("cls_token", [True, False])
def test_values_are_those_the_attention_uses(cls_token):
    torch.manual_seed(1)
    encoder = VisionTransformer3D(img_size=8, patch_size=4, embed_dim=24, depth=3, num_heads=3, cls_token=cls_token)
    torch.nn.init.normal_(encoder.blocks[0].attn.qkv.bias)
    x, seen = torch.randn(2, 1, 8, 8, 8), []
    handles = [block.attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
               for block in encoder.blocks]
    encoder(x)
    together, apart = value_matrices(encoder, x), value_matrices(encoder, x, per_head=True)
    for handle in handles:
        handle.remove()
    assert len(together) == len(apart) == 3
    for qkv, whole, heads in zip(seen, together, apart):
        torch.testing.assert_close(whole, qkv[..., 48:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(heads, split_qkv(qkv, 3)[2], atol=1e-5, rtol=1e-5)
    assert together[0].shape == (2, 8 + cls_token, 24) and apart[0].shape == (2, 3, 8 + cls_token, 8)
    if cls_token:
        torch.testing.assert_close(value_matrices(encoder, x, keep_cls=False)[2], together[2][:, 1:])


def test_values_of_some_patches():
    torch.manual_seed(1)
    encoder = VisionTransformer3D(img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=3, cls_token=True)
    x, order = torch.randn(1, 1, 8, 8, 8), torch.tensor([[6, 0, 3, 1, 2, 7, 5, 4]])
    patches = encoder.patch_embed.patchify(x)[:, order[0]]
    everything, shuffled = value_matrices(encoder, x), value_matrices(encoder, patches, order)
    torch.testing.assert_close(shuffled[1][:, 1:], everything[1][:, 1 + order[0]], atol=1e-5, rtol=1e-5)
    some = value_matrices(encoder, patches[:, :3], order[:, :3])
    assert some[1].shape == (1, 4, 24)
    assert (some[1][:, 1:] - shuffled[1][:, 1:4]).abs().max() > 1e-3  # attention among the visible ones only
