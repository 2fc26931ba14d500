"""``python -m training.benchmarks tile``: cost of the networks at inference, measured side by side.

It puts one tile volume through this project's network, MONAI's UNETR (patch 16, width 768) and SwinUNETR
(feature size 48), and nnU-Net's plain U-Net (six stages, 32 to 320 channels, two convolutions each), and prints
GFLOP, seconds and peak memory, also as ratios to ours. What makes the numbers fair:
- rounds are interleaved (every network once per round, the order turning), so that a busy machine hits all alike;
- the work timed is from the input tile to class probabilities, which is what inference does with a tile;
- memory is the peak of a process of its own per network, less what the process held before the network was built;
- one multiply-add counts as two FLOP; attention products are counted (the fused kernel hides them, so counting runs
  the plain one); norms, activations, interpolation and deformable sampling are not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from HiEndSegLib.errors import OptionError
from HiEndSegLib.models.card import read_card
from HiEndSegLib.networks.build import build_network
from training.benchmarks.machine import DTYPES, machine, measured_apart, resident_peak, synchronizer

MODELS = Path(__file__).resolve().parents[2] / "Resources" / "Models"
FALLBACK = {"kind": "maskmed", "in_channels": 2, "num_classes": 20}


def shipped_config(models: Path = MODELS) -> tuple[dict, str]:
    """Network entry of the shipped model's card, or the default preset when none ships; and its name in words."""
    for card in sorted(models.glob("*/card.json")):
        content = read_card(card.parent)
        return dict(content.network), f"HiEndSeg {content.id}"
    return dict(FALLBACK), "HiEndSeg default preset"


def ours(channels: int, classes: int, size: int) -> nn.Module:
    config, _ = shipped_config()
    for name in ("num_classes", "out_channels"):
        if name in config:
            config[name] = classes
    network = build_network({**config, "in_channels": channels})
    if size != config.get("img_size", 96):
        raise OptionError(f"This network's tile has an edge of {config.get('img_size', 96)}, not {size}.")
    return network


def unetr(channels: int, classes: int, size: int) -> nn.Module:
    return build_network({"kind": "unetr16", "in_channels": channels, "out_channels": classes, "img_size": size})


def swin_unetr(channels: int, classes: int, size: int) -> nn.Module:
    import inspect

    from monai.networks.nets import SwinUNETR
    options = {"img_size": (size,) * 3} if "img_size" in inspect.signature(SwinUNETR.__init__).parameters else {}
    return SwinUNETR(in_channels=channels, out_channels=classes, feature_size=48, **options)


def plain_unet(channels: int, classes: int, size: int) -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    return PlainConvUNet(
        input_channels=channels, n_stages=6, features_per_stage=[32, 64, 128, 256, 320, 320], conv_op=nn.Conv3d,
        kernel_sizes=3, strides=[1, 2, 2, 2, 2, 2], n_conv_per_stage=2, num_classes=classes,
        n_conv_per_stage_decoder=2, conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True})


# key -> (how to build it, its name in the table); the first is what the ratios refer to
NETWORKS: dict[str, tuple[Callable[[int, int, int], nn.Module], str]] = {
    "ours": (ours, ""),
    "unetr": (unetr, "MONAI UNETR (p16, 768, f32)"),
    "swin": (swin_unetr, "MONAI SwinUNETR (48)"),
    "nnunet": (plain_unet, "nnU-Net plain U-Net (6 stages)"),
}


def make(key: str, options: argparse.Namespace) -> nn.Module:
    """The network, initialised alike every time, on the device, in eval mode."""
    torch.manual_seed(0)
    try:
        network = NETWORKS[key][0](options.channels, options.classes, options.size)
    except ImportError as error:
        # nnU-Net's package asks for timm, and timm for torchvision, which would replace PyTorch: hence --no-deps.
        package = (error.name or "").split(".")[0].replace("_", "-")
        command = "--no-deps dynamic-network-architectures" if package.startswith("dynamic") else '"hiendseg[train]"'
        raise OptionError(f"The comparison needs {package}; install it with: pip install {command}.") from error
    # Without gradients also by declaration: the FLOP counter follows every tensor that asks for one.
    return network.eval().requires_grad_(False).to(options.device)


def probabilities(network: nn.Module, tile: Tensor, dtype: torch.dtype) -> Tensor:
    """One tile to class probabilities ``(1, K, S, S, S)``, in autocast unless float32."""
    with torch.no_grad(), torch.autocast(tile.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return network.scores(tile) if hasattr(network, "scores") else network(tile).softmax(dim=1)


def gigaflop(network: nn.Module, tile: Tensor) -> float:
    """FLOP of one forward pass in units of 1e9, two per multiply-add."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        probabilities(network, tile, torch.float32)
    return counter.get_total_flops() / 1e9


def random_tile(options: argparse.Namespace) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(1, options.channels, *(options.size,) * 3, device=options.device)


def peak_memory(key: str, options: argparse.Namespace) -> int:
    """Bytes one network needs for one tile beyond a bare process; run in a process of its own."""
    dtype = DTYPES[options.precision]
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(options.device)
        probabilities(make(key, options), random_tile(options), dtype)
        torch.cuda.synchronize(options.device)
        return torch.cuda.max_memory_allocated(options.device)
    # Imports and the thread pools are not the network's memory; a small run brings both in.
    probabilities(nn.Conv3d(1, 2, 3).eval(), torch.rand(1, 1, 8, 8, 8), dtype)
    build_imports(key)
    before = resident_peak()
    probabilities(make(key, options), random_tile(options), dtype)
    return resident_peak() - before


def build_imports(key: str) -> None:
    """Import what the network's builder imports, by building it without memory."""
    with torch.device("meta"), contextlib.suppress(RuntimeError):  # MONAI's Swin wants real numbers to start from
        NETWORKS[key][0](1, 2, 96)


def memory_in_own_process(key: str, options: argparse.Namespace) -> int:
    return measured_apart(["tile", "--memory-of", key, "--device", options.device, "--precision", options.precision,
                           "--size", str(options.size), "--classes", str(options.classes),
                           "--channels", str(options.channels)], options.threads, f"the memory of {key}")


def timed_rounds(networks: dict[str, nn.Module], tile: Tensor, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per network and round; the order turns by one each round. The first pass of each is not counted."""
    dtype, keys = DTYPES[options.precision], list(networks)
    synchronize = synchronizer(tile.device)
    seconds: dict[str, list[float]] = {key: [] for key in keys}
    for network in networks.values():
        probabilities(network, tile, dtype)
    for round_number in range(options.rounds):
        turn = round_number % len(keys)
        for key in keys[turn:] + keys[:turn]:
            synchronize()
            start = time.perf_counter()
            probabilities(networks[key], tile, dtype)
            synchronize()
            seconds[key].append(time.perf_counter() - start)
        gc.collect()
    return seconds


def tile_benchmark(options: argparse.Namespace) -> list[dict]:
    """All measurements of the chosen networks; one row each, in the order of `NETWORKS`."""
    keys = [key for key in NETWORKS if key in options.networks]
    memory = {key: memory_in_own_process(key, options) for key in keys}
    tile = random_tile(options)
    networks = {key: make(key, options) for key in keys}
    flop = {key: gigaflop(network, tile) for key, network in networks.items()}
    seconds = timed_rounds(networks, tile, options)
    return [{"key": key, "name": NETWORKS[key][1] or shipped_config()[1],
             "parameters": sum(p.numel() for p in networks[key].parameters()), "gflop": flop[key],
             "seconds": statistics.median(seconds[key]), "fastest": min(seconds[key]), "memory": memory[key]}
            for key in keys]


def table(rows: Sequence[dict], options: argparse.Namespace) -> str:
    """The rows as text, with ratios to the first."""
    first = rows[0]
    title = (f"tile {options.channels} x {options.size}^3 -> {options.classes} class probabilities, "
             f"{options.precision}, {options.rounds} interleaved rounds")
    heads = (f"{'network':<34}{'M param.':>9}{'GFLOP':>10}{'ratio':>8}{'seconds':>10}{'fastest':>9}{'ratio':>8}"
             f"{'peak MB':>10}{'ratio':>8}")
    lines = [title, machine(options.device), "", heads]
    for row in rows:
        lines.append(
            f"{row['name']:<34}{row['parameters'] / 1e6:>9.1f}{row['gflop']:>10.1f}"
            f"{row['gflop'] / first['gflop']:>8.2f}{row['seconds']:>10.3f}{row['fastest']:>9.3f}"
            f"{row['seconds'] / first['seconds']:>8.2f}{row['memory'] / 1e6:>10.0f}"
            f"{row['memory'] / max(first['memory'], 1):>8.2f}")
    return "\n".join(lines + ["", "seconds: median; memory: weights and activations; one multiply-add = 2 FLOP"])


def add_arguments(tile: argparse.ArgumentParser) -> None:
    tile.add_argument("--rounds", type=int, default=5, help="how often every network runs (default 5)")
    tile.add_argument("--precision", choices=DTYPES, default="fp32", help="fp32, or autocast to bf16 or fp16")
    tile.add_argument("--bf16", dest="precision", action="store_const", const="bf16", help="same as --precision bf16")
    tile.add_argument("--size", type=int, default=96, help="edge of the tile in voxels (default 96)")
    tile.add_argument("--classes", type=int, default=20, help="classes with background (default 20)")
    tile.add_argument("--channels", type=int, default=2, help="input channels (default 2, one per window)")
    tile.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which to measure")
    tile.add_argument("--memory-of", choices=NETWORKS, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> str:
    """What the command prints."""
    if options.memory_of:
        return str(peak_memory(options.memory_of, options))
    return table(tile_benchmark(options), options)
