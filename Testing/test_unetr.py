"""UNETR: published sizes, equality with MONAI's own from the same weights, intermediate results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from HiEndSegLib.errors import OptionError
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.unetr import UNETR12, ResidualBlock, TokenBlock, UpBlock, make_norm, unetr16

TINY = {"out_channels": 3, "in_channels": 2, "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 3}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomise(module: torch.nn.Module) -> None:
    """Start values hide mistakes (biases are zero, norms are one)."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)


def test_published_sizes():
    with torch.device("meta"):
        network = UNETR12(out_channels=14)
        base16 = UNETR12(out_channels=14, patch_size=16, hidden_size=768, mlp_dim=3072, num_heads=12,
                         last_step="transposed")
        large16 = UNETR12(out_channels=14, patch_size=16, last_step="transposed")
    assert parameters(network) == 361_234_286
    assert {name: parameters(part) for name, part in network.named_children()} == {
        "vit": 343_423_488, "encoder1": 28_544, "encoder2": 1_294_336, "encoder3": 2_588_672, "encoder4": 3_145_728,
        "decoder5": 8_585_216, "decoder4": 1_622_016, "decoder3": 405_504, "decoder2": 140_320, "out": 462}
    assert (parameters(base16), parameters(large16)) == (101_814_862, 364_377_934)


def test_names_of_the_segmentation_part():
    keys = set(UNETR12(img_size=24, **TINY).state_dict())
    assert {"vit.patch_embedding.patch_embeddings.1.weight", "vit.patch_embedding.position_embeddings",
            "vit.blocks.11.attn.out_proj.bias", "vit.blocks.0.mlp.linear2.weight", "vit.norm.bias",
            "encoder1.layer.conv3.conv.weight", "encoder2.transp_conv_init.conv.weight",
            "encoder2.blocks.1.0.conv.weight", "encoder2.blocks.0.1.conv2.conv.weight",
            "decoder5.transp_conv.conv.weight", "decoder5.conv_block.conv3.conv.weight", "decoder2.conv3d.weight",
            "decoder2.conv3d.bias", "out.conv.conv.weight", "out.conv.conv.bias"} <= keys


def test_whole_network_equals_monai_at_patch_16():
    pytest.importorskip("monai")
    theirs = unetr16(img_size=32, **TINY).eval()
    randomise(theirs)
    ours = UNETR12(img_size=32, patch_size=16, last_step="transposed", **TINY).eval()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not result.missing_keys and all("cross_attn" in key for key in result.unexpected_keys)
    x = torch.randn(2, 2, 32, 32, 32)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.scores(x).sum(dim=1), torch.ones(2, 32, 32, 32))
        torch.testing.assert_close(theirs.scores(x), expected.softmax(dim=1))


@pytest.mark.parametrize("norm", ["instance", "batch", ("group", {"num_groups": 2}), ("instance", {"affine": True})])
def test_blocks_equal_monai(norm):
    pytest.importorskip("monai")
    from monai.networks.blocks import UnetrPrUpBlock, UnetrUpBlock
    from monai.networks.blocks.dynunet_block import UnetResBlock

    x, skip = torch.randn(1, 6, 3, 4, 5), torch.randn(1, 4, 6, 8, 10)
    common = {"spatial_dims": 3, "kernel_size": 3, "norm_name": norm}
    pairs = [
        (ResidualBlock(6, 6, norm=norm), UnetResBlock(in_channels=6, out_channels=6, stride=1, **common), (x,)),
        (ResidualBlock(6, 4, norm=norm), UnetResBlock(in_channels=6, out_channels=4, stride=1, **common), (x,)),
        (TokenBlock(6, 4, doublings=1, norm=norm),
         UnetrPrUpBlock(in_channels=6, out_channels=4, num_layer=1, stride=1, upsample_kernel_size=2, conv_block=True,
                        res_block=True, **common), (x,)),
        (UpBlock(6, 4, norm=norm),
         UnetrUpBlock(in_channels=6, out_channels=4, upsample_kernel_size=2, res_block=True, **common), (x, skip)),
    ]
    for ours, theirs, inputs in pairs:
        randomise(theirs)
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(*inputs), theirs.eval()(*(t.clone() for t in inputs)),
                                       atol=1e-5, rtol=1e-5)


def test_patch_embedding_is_channel_last_and_one_token_by_hand():
    network = UNETR12(img_size=24, patch_size=12, **TINY)
    embedding = network.vit.patch_embedding
    x = torch.zeros(1, 2, 24, 24, 24)
    x[0, 1, 12 + 3, 4, 12 + 5] = 2.0  # channel 1, cell (1, 0, 1) = token 5, voxel (3, 4, 5) of it
    tokens, grid = embedding(x)
    column = ((3 * 12 + 4) * 12 + 5) * 2 + 1
    linear = embedding.patch_embeddings["1"]
    expected = linear.bias + 2 * linear.weight[:, column] + embedding.position_embeddings[0, 5]
    assert grid == (2, 2, 2)
    torch.testing.assert_close(tokens[0, 5], expected)
    torch.testing.assert_close(tokens[0, 4], linear.bias + embedding.position_embeddings[0, 4])


@pytest.mark.parametrize("img_size, patch_size", [(24, 12), ((24, 12, 36), 12), (16, 8), (20, 5)])
def test_features_have_the_documented_shapes_and_wiring(img_size, patch_size):
    network = UNETR12(img_size=img_size, patch_size=patch_size, num_layers=6, skip_indices=(1, 2, 4), **TINY).eval()
    randomise(network)
    size, grid = network.img_size, network.vit.patch_embedding.grid
    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        out = network.forward_features(x, attention=(0, 5))
        up = {"encoder4": 2, "encoder3": 4, "encoder2": 8, "decoder5": 2, "decoder4": 4, "decoder3": 8}
        for name, factor in up.items():
            assert out.features[name].shape[2:] == tuple(factor * g for g in grid), name
        tokens = grid[0] * grid[1] * grid[2]
        assert out.logits.shape == (1, 3, *size) and out.vit_out.shape == (1, tokens, 24)
        assert out.vit_hidden.shape == (3, 1, tokens, 24) and sorted(out.attention) == [0, 5]
        assert out.attention[5].shape == (1, 3, tokens, tokens)
        torch.testing.assert_close(out.attention[0].sum(-1), torch.ones(1, 3, tokens))
        # the tap is the raw output of the block, and encoder4 reads the last one
        deepest = out.vit_hidden[2].transpose(1, 2).reshape(1, 24, *grid)
        torch.testing.assert_close(network.encoder4(deepest), out.features["encoder4"])
        last = F.interpolate(out.features["decoder3"], size=size, mode="trilinear", align_corners=False)
        joined = torch.cat([network.decoder2.conv3d(last), out.features["encoder1"]], dim=1)
        torch.testing.assert_close(network.decoder2.conv_block(joined), out.features["decoder2"])


def test_layer_norm_epsilon_reaches_every_norm():
    network = UNETR12(img_size=24, ln_eps=1e-6, **TINY)
    assert {m.eps for m in network.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_another_image_size_resamples_the_table():
    network = UNETR12(img_size=24, num_layers=10, **TINY).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 2, 36, 24, 24)).shape == (1, 3, 36, 24, 24)
    with pytest.raises(ValueError, match=r"\(30, 24, 24\)"):
        network(torch.zeros(1, 2, 30, 24, 24))


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="three skips from the blocks 0 to 3"):
        UNETR12(img_size=24, num_layers=4, **TINY)
    with pytest.raises(ValueError, match="5 attention heads"):
        UNETR12(img_size=24, **{**TINY, "num_heads": 5})
    with pytest.raises(OptionError, match="'layer'"):
        make_norm("layer", 4)


def test_kinds_of_the_builder():
    network = build_network({"kind": "unetr12", "img_size": 24, **TINY})
    assert isinstance(network, UNETR12)
    pytest.importorskip("monai")
    assert build_network({"kind": "unetr16", "img_size": 32, **TINY}).vit.blocks[0].attn.qkv.bias is not None
