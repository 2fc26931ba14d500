"""Hi-End-MAE derived a second time: loops and elementary operations on the state dict alone, for a tiny network."""

from __future__ import annotations

import math

import torch

from HiEndSegLib.networks.hi_end_mae import HiEndMAE

SIZE, PATCH, CHANNELS = (8, 4, 12), 4, 2  # 2 x 1 x 3 patches
TINY = {"img_size": SIZE, "patch_size": PATCH, "in_channels": CHANNELS, "embed_dim": 24, "depth": 5, "num_heads": 3,
        "mlp_ratio": 2.0, "decoder_embed_dim": 12, "decoder_num_heads": 2, "stage_indices": (1, 2, 4),
        "mask_ratio": 0.5}
SHUFFLE = torch.tensor([[4, 0, 5, 1, 3, 2], [2, 1, 0, 5, 4, 3]])


def tiny(**options) -> HiEndMAE:
    """A network in double precision with uneven weights, so that nothing hides behind zeros and ones."""
    torch.manual_seed(0)
    network = HiEndMAE(**{**TINY, **options}).double().eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return network


def crops() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, CHANNELS, *SIZE, dtype=torch.float64)


def cut(x):
    """Patches of one sample, first axis slowest, values (p1, p2, p3, channel)."""
    rows = []
    for i in range(0, SIZE[0], PATCH):
        for j in range(0, SIZE[1], PATCH):
            for k in range(0, SIZE[2], PATCH):
                rows.append(torch.stack([x[c, i + a, j + b, k + d] for a in range(PATCH) for b in range(PATCH)
                                         for d in range(PATCH) for c in range(CHANNELS)]))
    return torch.stack(rows)


def table(width):
    """The position rows from their formula."""
    rows, n = [], width // 6
    for cell in [(i, j, k) for i in range(2) for j in range(1) for k in range(3)]:
        row = []
        for coordinate in cell:
            angles = [coordinate * 10000 ** (-m / n) for m in range(n)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row)
    return torch.tensor(rows).double()


def normed(state, name, x):
    spread = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
    x = (x - x.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt()
    return x * state[name + ".weight"] + state[name + ".bias"]


def linear(state, name, x):
    return x @ state[name + ".weight"].T + state[name + ".bias"]


def attend(q, k, v, heads):
    width, out = q.shape[-1] // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = q[:, part] @ k[:, part].T / math.sqrt(width)
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        out.append(weights @ v[:, part])
    return torch.cat(out, dim=1)


def self_attention(state, name, x, heads):
    return linear(state, name + ".proj", attend(*linear(state, name + ".qkv", x).chunk(3, dim=1), heads))


def mlp(state, name, x):
    x = linear(state, name + ".fc1", x)
    return linear(state, name + ".fc2", x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))


def plain_block(state, name, x, heads):
    x = x + self_attention(state, name + ".attn", normed(state, name + ".norm1", x), heads)
    return x + mlp(state, name + ".mlp", normed(state, name + ".norm2", x))


def cross_block(state, name, x, y, heads):
    x = x + self_attention(state, name + ".self_attn", normed(state, name + ".norm0", x), heads)
    k, v = linear(state, name + ".cross_attn.kv", y).chunk(2, dim=1)
    q = linear(state, name + ".cross_attn.q", normed(state, name + ".norm1", x))
    x = x + linear(state, name + ".cross_attn.proj", attend(q, k, v, heads))
    return x + mlp(state, name + ".mlp", normed(state, name + ".norm2", x))


def derive(state, x, order):
    """One sample; every recorded field, by the numbered steps of the paper's code."""
    patches, order, seen = cut(x), order.tolist(), {}
    visible, masked = order[:3], order[3:]
    kernel = state["encoder.patch_embed.proj.weight"]  # (D, C, p, p, p)
    cubes = patches[visible].reshape(3, PATCH, PATCH, PATCH, CHANNELS)
    tokens = torch.einsum("sabdc,ncabd->sn", cubes, kernel) + state["encoder.patch_embed.proj.bias"]
    tokens = torch.cat([state["encoder.cls_token"][0], tokens + table(24)[visible]])
    hidden = []
    for i in range(5):
        tokens = plain_block(state, f"encoder.blocks.{i}", tokens, 3)
        hidden.append(tokens)
    seen["encoder_hidden_states"] = torch.stack(hidden)
    last = seen["encoder_out"] = normed(state, "encoder.norm", tokens)
    kv = {str(index): linear(state, f"encoder_to_decoder.{s}", hidden[index]) for s, index in enumerate((1, 2, 4))}
    seen["stage_kv"] = kv
    projected = seen["last_projected"] = linear(state, "encoder_to_decoder.3", last)
    y = torch.cat([projected, state["mask_token"][0].repeat(3, 1)])
    y = y + torch.cat([torch.zeros(1, 12).double(), table(12)[order]])
    seen["decoder_in"] = y
    seen["decoder_after_self"], seen["decoder_after_cross"] = [], []
    for j in range(2):
        y = plain_block(state, f"decoder.blocks.{j}", y, 2)
        seen["decoder_after_self"].append(y)
    for c, index in enumerate(("4", "2", "1")):
        y = cross_block(state, f"decoder.cross_attention_blocks.{c}", y, kv[index], 2)
        seen["decoder_after_cross"].append(y)
    seen["decoder_norm"] = normed(state, "decoder.norm", y)
    prediction = seen["prediction"] = linear(state, "decoder.head", seen["decoder_norm"])
    target = patches[masked]
    spread = ((target - target.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True)
    target = (target - target.mean(1, keepdim=True)) / (spread + 1e-6).sqrt()
    loss = ((prediction[-3:] - target) ** 2).mean()
    image = torch.empty_like(patches)
    for row, cell in enumerate(order):
        image[cell] = prediction[1 + row] * (patches[cell].std(unbiased=True) + 1e-6) + patches[cell].mean()
    seen["reconstruction_tokens"] = image
    return loss, seen
