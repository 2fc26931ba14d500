"""The encoder: position table and attention by hand, its published sizes, intermediate outputs, token subsets."""

from __future__ import annotations

import math

import pytest
import torch

from HiEndSegLib.errors import OptionError
from HiEndSegLib.networks.attention import fused_attention, softmax_rows
from HiEndSegLib.networks.position import resize_position, sincos_position_3d
from HiEndSegLib.networks.vit import VIT_VARIANTS, VisionTransformer3D, build_vit

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3}


def tiny(**options) -> VisionTransformer3D:
    torch.manual_seed(0)
    encoder = VisionTransformer3D(**{**TINY, **options}).eval()
    for block in encoder.blocks:  # start values make attention nearly uniform; these do not
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    return encoder


def test_position_rows_by_hand():
    s1, c1, s2, c2 = math.sin(1), math.cos(1), math.sin(2), math.cos(2)
    table = sincos_position_3d((2, 1, 3), 6)
    expected = torch.tensor([[0, 1, 0, 1, 0, 1], [0, 1, 0, 1, s1, c1], [0, 1, 0, 1, s2, c2],
                             [s1, c1, 0, 1, 0, 1], [s1, c1, 0, 1, s1, c1], [s1, c1, 0, 1, s2, c2]])
    assert table.shape == (1, 6, 6)
    torch.testing.assert_close(table[0], expected)


def test_position_frequencies_by_hand():
    # width 12: two frequencies, 1 and 10000^(-1/2) = 0.01
    row = sincos_position_3d((1, 4, 1), 12)[0, 3]
    piece = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    torch.testing.assert_close(row, torch.tensor([0.0, 0, 1, 1, *piece, 0, 0, 1, 1]))


def test_position_width_must_be_a_multiple_of_six():
    with pytest.raises(ValueError, match="multiple of 6, not 32"):
        sincos_position_3d(2, 32)


def test_resize_position_by_hand_and_along_each_axis():
    line = torch.tensor([0.0, 1.0])[None, :, None]
    resized = resize_position(line, (2, 1, 1), (4, 1, 1))
    torch.testing.assert_close(resized[0, :, 0], torch.tensor([0, 0.25, 0.75, 1]))
    ramp = torch.arange(24.0).reshape(2, 3, 4).flatten()[None, :, None]
    grown = resize_position(ramp, (2, 3, 4), (2, 3, 8)).reshape(2, 3, 8)
    torch.testing.assert_close(grown[..., 1:-1].diff(dim=-1), torch.full((2, 3, 5), 0.5))
    assert resize_position(ramp, (2, 3, 4), (2, 3, 4)) is ramp
    with pytest.raises(ValueError, match=r"\(1, 8, width\), not \(1, 24, 1\)"):
        resize_position(ramp, 2, 3)


def test_attention_by_hand():
    # one head of width 1: q = (0, ln 3), k = (0, 1), v = (4, 8); second row of the map is (1/4, 3/4)
    qkv = torch.tensor([[[0.0, 0.0, 4.0], [math.log(3), 1.0, 8.0]]])
    torch.testing.assert_close(softmax_rows(qkv, 1)[0, 0], torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    torch.testing.assert_close(fused_attention(qkv, 1)[0, :, 0], torch.tensor([6.0, 7.0]))


def test_heads_are_contiguous_pieces_of_q_k_and_v():
    torch.manual_seed(1)
    qkv = torch.randn(2, 5, 3 * 8)
    q, k, v = qkv.split(8, dim=2)
    for head, part in enumerate((slice(0, 4), slice(4, 8))):
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 2.0, dim=-1)
        torch.testing.assert_close(softmax_rows(qkv, 2)[:, head], weights)
        torch.testing.assert_close(fused_attention(qkv, 2)[..., part], weights @ v[..., part])


@pytest.mark.parametrize("name, parameters", [("hi_end_mae_vit_base_16p", 88_203_264),
                                              ("hi_end_mae_vit_large_16p", 346_275_840),
                                              ("hi_end_mae_vit_large_12p", 342_638_592)])
def test_published_encoder_sizes(name, parameters):
    with torch.device("meta"):
        encoder = build_vit(name, cls_token=True)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert not encoder.pos_embed.is_meta  # the fixed table comes from no checkpoint and must be there


def test_variants_and_unknown_name():
    encoder = build_vit("vit_tiny_12p", depth=1, img_size=24)
    assert encoder.depth == 1 and encoder.embed_dim == VIT_VARIANTS["vit_tiny_12p"]["embed_dim"]
    assert {"vit_small_12p", "vit_tiny_12p"} <= set(VIT_VARIANTS)
    with pytest.raises(OptionError, match="vit_huge.*choose one of"):
        build_vit("vit_huge")


def test_parameter_names_are_the_published_ones():
    keys = set(tiny(cls_token=True).state_dict())
    assert {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias", "blocks.3.norm1.weight",
            "blocks.0.attn.qkv.bias", "blocks.0.attn.proj.weight", "blocks.0.norm2.bias", "blocks.0.mlp.fc1.weight",
            "blocks.0.mlp.fc2.bias", "norm.weight"} <= keys
    assert len(keys) == 1 + 2 + 4 * 12 + 2  # and nothing else: the fixed table is not stored
    assert "pos_embed" in tiny(learned_position=True).state_dict()


def test_intermediates_match_a_run_by_hand():
    encoder, x = tiny(), torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        tokens = encoder.patch_embed.proj(x).flatten(2).transpose(1, 2) + encoder.pos_embed
        outputs = []
        for block in encoder.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        (third, first, last), final = encoder.forward_intermediates(x, (2, 0, -1))
        assert third.shape == (2, 8, 24)
        torch.testing.assert_close([first, third, last], [outputs[0], outputs[2], outputs[3]])
        torch.testing.assert_close(final, encoder.norm(tokens))
        torch.testing.assert_close(encoder(x), final)
        (normed,), nothing = encoder.forward_intermediates(x, (1,), norm=True, return_final=False)
        assert nothing is None
        torch.testing.assert_close(normed, encoder.norm(outputs[1]))
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        encoder.forward_intermediates(x, (4,))


def test_token_order_is_first_axis_slowest():
    encoder, x = tiny(), torch.zeros(1, 1, 8, 8, 8)
    x[0, 0, 5, 1, 6] = 1.0  # cell (1, 0, 1) -> token 5
    patches = encoder.patch_embed.patchify(x)
    assert patches.shape == (1, 8, 64) and patches[0].sum(dim=1).tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert patches[0, 5, 1 * 16 + 1 * 4 + 2] == 1
    assert encoder.to_grid(torch.arange(8.0)[None, :, None]).flatten(2)[0, 0].tolist() == list(range(8))


@pytest.mark.parametrize("cls_token", [False, True])
def test_all_tokens_as_a_subset_equal_the_dense_run(cls_token):
    encoder, x = tiny(cls_token=cls_token, in_channels=2), torch.randn(2, 2, 8, 8, 8)
    order = torch.stack([torch.randperm(8), torch.randperm(8)])
    with torch.no_grad():
        dense, final = encoder.forward_intermediates(x, (1,))
        patches = encoder.patch_embed.patchify(x)
        shuffled = patches.gather(1, order[..., None].expand_as(patches))
        some, ours = encoder.forward_tokens(shuffled, order, (1,))
        back = order.argsort(dim=1)[..., None].expand_as(final)
        torch.testing.assert_close(ours.gather(1, back), final, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(some[0].gather(1, back), dense[0], atol=2e-5, rtol=1e-4)
        few, _ = encoder.forward_tokens(shuffled[:, :3], order[:, :3], (0,), keep_cls=True)
        assert few[0].shape == (2, 3 + cls_token, 24)


def test_explicit_attention_agrees_with_the_fused_one():
    encoder, x = tiny(), torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        (before, after), _ = encoder.forward_intermediates(x, (1, 2))
        weights = encoder.attention_weights(x, (2,))[2]
        block = encoder.blocks[2]
        v = block.attn.qkv(block.norm1(before)).view(2, 8, 3, 3, 8)[:, :, 2].transpose(1, 2)
        middle = before + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(middle + block.mlp(block.norm2(middle)), after, atol=1e-5, rtol=1e-5)
        assert (weights.amax(-1) - weights.amin(-1)).max() > 0.1  # a map worth comparing


def test_attention_rows_and_cls_handling():
    encoder, x = tiny(cls_token=True), torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        everything = encoder.attention_weights(x, (0, -1), keep_cls=True)
        dropped = encoder.attention_weights(x, (0, -1))
        rows = encoder.attention_weights(x, (-1,), rows=[6, 1])
        with_cls = encoder.attention_weights(x, (-1,), rows=torch.tensor([6]), keep_cls=True)
    assert everything[0].shape == (1, 3, 9, 9) and dropped[-1].shape == (1, 3, 8, 8)
    inner = everything[-1][..., 1:, 1:]
    torch.testing.assert_close(dropped[-1], inner / inner.sum(-1, keepdim=True))
    torch.testing.assert_close(rows[-1], dropped[-1][:, :, [6, 1]])
    torch.testing.assert_close(with_cls[-1], everything[-1][:, :, [0, 7]])


def test_other_input_sizes():
    x = torch.randn(1, 1, 12, 4, 8)
    fixed, learned = tiny(), tiny(learned_position=True)
    with torch.no_grad():
        assert fixed(x).shape == (1, 6, 24)
        torch.testing.assert_close(fixed.position_table((3, 1, 2)), sincos_position_3d((3, 1, 2), 24))
        torch.testing.assert_close(learned.position_table((3, 1, 2)), resize_position(learned.pos_embed, 2, (3, 1, 2)))
        assert learned(x).shape == (1, 6, 24)
    with pytest.raises(ValueError, match=r"\(12, 4, 9\)"):
        fixed(torch.zeros(1, 1, 12, 4, 9))
    with pytest.raises(ValueError, match="1 channels"):
        fixed(torch.zeros(1, 2, 8, 8, 8))


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        encoder = tiny(checkpointing=checkpointing).train()
        encoder(torch.ones(1, 1, 8, 8, 8)).square().sum().backward()
        gradients.append(encoder.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_half_precision_weights_keep_a_working_table():
    encoder = tiny().to(torch.bfloat16)
    with torch.no_grad():
        assert encoder(torch.randn(1, 1, 8, 8, 12, dtype=torch.bfloat16)).isfinite().all()
