"""Rows of attention: equal to the softmax in the open for every block and head of every encoder, and no more work."""

from __future__ import annotations

import attention_models as am
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from HiEndSegLib.networks import attention, mask_head
from HiEndSegLib.networks.attention import attention_rows, carried_back
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.head_trace import find_head, trace_head
from HiEndSegLib.networks.looking import TokenStates, find_encoder

UNETR = {"kind": "unetr12", "out_channels": 3, "img_size": 24, "patch_size": 12, "feature_size": 4, "hidden_size": 24,
         "mlp_dim": 48, "num_layers": 10, "num_heads": 3}


def _monai():
    pytest.importorskip("monai")
    return build_network({"kind": "unetr16", "out_channels": 3, "img_size": 32, "feature_size": 4, "hidden_size": 24,
                          "mlp_dim": 48, "num_heads": 3})


class _Wrapped(nn.Module):
    """An encoder inside something else."""

    def __init__(self, vit):
        super().__init__()
        self.inner = nn.ModuleDict({"encoder": vit})

    def forward(self, x):
        return self.inner["encoder"](x)


NETWORKS = {
    "ViT": (lambda: _Wrapped(am.random_vit()), 16),
    "ViT with a cls token": (lambda: _Wrapped(am.random_vit(cls_token=True)), 16),
    "ViT without biases": (lambda: _Wrapped(am.random_vit(qkv_bias=False)), 16),
    "MaskMed": (am.maskmed, 24),
    "UNETR": (lambda: am.spread_out(build_network(UNETR)), 24),
    "MONAI's UNETR": (lambda: am.spread_out(_monai()), 32),
}


def explicit_maps(network, x):
    """softmax(Q K^T / sqrt(d)) in float64 of every block, from what its projection gives in an ordinary forward."""
    maps, hooks = [], []
    for name, module in network.named_modules():
        if name.endswith("attn.qkv") and isinstance(module, nn.Linear):
            heads = network.get_submodule(name.rpartition(".")[0]).num_heads
            hooks.append(module.register_forward_hook(
                lambda module, inputs, out, heads=heads: maps.append(_softmax(out[0].double(), heads))))
    network(x)
    for hook in hooks:
        hook.remove()
    return maps


def _softmax(qkv, heads):
    q, k, _ = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in qkv.chunk(3, 1))
    return (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(-1)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_rows_are_the_explicit_softmax_of_every_block_and_head(name):
    make, size = NETWORKS[name]
    network = make().eval()
    torch.manual_seed(2)
    x = torch.rand(1, 1, size, size, size)
    maps = explicit_maps(network, x)
    view = find_encoder(network)
    states = TokenStates(view, x)
    assert len(maps) == view.depth and states.count == maps[0].shape[1] - view.extra
    tokens = list(range(0, states.count, 3))
    for layer, full in enumerate(maps):
        wanted = full[:, [t + view.extra for t in tokens], view.extra:]
        wanted = wanted / wanted.sum(-1, keepdim=True)         # without the cls column
        rows = states.rows(layer, tokens)
        assert rows.shape == wanted.shape == (view.heads, len(tokens), states.count)
        assert (rows.sum(-1) - 1).abs().max() < 1e-5 and (rows - wanted).abs().max() < 1e-5
    assert full.max() > 3 / full.shape[1]                       # not the near-uniform maps that would hide mistakes


@torch.no_grad()
def test_a_cls_token_takes_part_in_the_softmax_and_is_left_out_of_the_row():
    vit = am.random_vit(cls_token=True)
    x = torch.rand(1, 1, 16, 16, 16)
    with_cls = vit.attention_weights(x, [2], rows=[5], keep_cls=True)[2][0, :, 1]
    row = TokenStates(find_encoder(vit), x).rows(2, [5])[:, 0]
    torch.testing.assert_close(row, with_cls[:, 1:] / (1 - with_cls[:, :1]), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_only_asked_rows_are_made_and_every_block_keeps_its_fused_kernel(monkeypatch):
    vit = am.random_vit()
    fused, opened = [], []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: fused.append(a[0].shape) or real(*a, **k))
    for module in (attention, __import__("HiEndSegLib.networks.looking", fromlist=["x"])):
        rows = module.attention_rows
        monkeypatch.setattr(module, "attention_rows", lambda q, k, *a, rows=rows: opened.append(
            (q.shape[-2], k.shape[-2])) or rows(q, k, *a))
    states = TokenStates(find_encoder(vit), torch.rand(1, 1, 16, 16, 16))
    states.rows(2, [7])
    assert len(fused) == 2 and opened == [(1, 64)]             # blocks 0 and 1 ran; block 2 gave one row
    states.rows(1, [3, 4])
    assert len(fused) == 2 and opened[-1] == (2, 64)           # nothing ran again
    states.rows(3, [3])
    assert len(fused) == 3


@pytest.mark.parametrize("cls_token", [False, True])
@torch.no_grad()
def test_rollout_of_one_row_is_the_row_of_the_rolled_out_matrices(cls_token):
    vit = am.random_vit(cls_token=cls_token)
    x = torch.rand(1, 1, 16, 16, 16)
    extra = int(cls_token)
    product = torch.eye(64 + extra, dtype=torch.float64)
    for full in explicit_maps(vit, x)[:3]:
        product = (0.5 * (torch.eye(64 + extra, dtype=torch.float64) + full.mean(0))) @ product
    wanted = product[9 + extra, extra:]
    start = torch.zeros(64)
    start[9] = 1.0
    found = TokenStates(find_encoder(vit), x).rollout(2, start)
    assert abs(float(found.sum()) - 1) < 1e-5
    assert (found - wanted / wanted.sum()).abs().max() < 1e-5


@torch.no_grad()
def test_carrying_back_in_pieces_is_the_whole_product():
    torch.manual_seed(0)
    q, k = torch.randn(2, 50, 4), torch.randn(2, 50, 4)
    shares = torch.rand(50)
    shares[::3] = 0
    whole = shares @ attention_rows(q, k).mean(0)
    torch.testing.assert_close(carried_back(shares, q, k, rows=7), whole, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_head_rows_are_its_masked_softmax(monkeypatch):
    network = am.maskmed()
    with torch.no_grad():                                       # masks that cut some of the window off
        network.head.mask_embed[-1].weight.mul_(30)
        network.mask_features.smooth.weight.mul_(5)
    seen = []
    real = F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None):
        if attn_mask is not None:
            logits = (q.double() @ k.double().transpose(-2, -1)) / q.shape[-1] ** 0.5
            seen.append(logits.masked_fill(~attn_mask, -torch.inf).softmax(-1)[0])
        return real(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(mask_head.F, "scaled_dot_product_attention", spy)
    torch.manual_seed(3)
    x = torch.rand(1, 1, 24, 24, 24)
    trace = trace_head(network, x)
    assert len(seen) == len(trace.layers) == 4 and [layer.grid for layer in trace.layers] == 2 * [(3,) * 3, (6,) * 3]
    for number, full in enumerate(seen):
        rows = trace.rows(number, [2, 0])
        assert (rows - full[:, [2, 0]]).abs().max() < 1e-5 and (rows.sum(-1) - 1).abs().max() < 1e-5
    hidden = torch.cat([(layer.allowed == 0).flatten() for layer in trace.layers])
    assert hidden.any(), "the mask hid nothing, so it was not tested"
    torch.testing.assert_close(trace.output.final.class_logits, network(x).final.class_logits)
    assert not any(layer._forward_pre_hooks for layer in find_head(network).layers)


def test_networks_without_attention_are_known():
    assert find_encoder(am.ConvNet()) is None and find_head(am.ConvNet()) is None
    with pytest.raises(ValueError, match="no head"):
        trace_head(am.ConvNet(), torch.rand(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="patches"):
        TokenStates(find_encoder(am.random_vit()), torch.rand(1, 1, 18, 16, 16))
