"""What the benchmark of a tile counts, by hand on tiny networks; its timings are no test."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.benchmarks import convolution
from training.benchmarks import tile as benchmarks
from training.benchmarks.__main__ import main


def options(**changes) -> argparse.Namespace:
    return argparse.Namespace(**{"rounds": 3, "threads": None, "device": "cpu", "precision": "fp32", "size": 4,
                                 "classes": 2, "channels": 1, "networks": list(benchmarks.NETWORKS), **changes})


class Attend(nn.Module):
    def forward(self, x):  # (1, 1, 4, 4, 4) as 16 tokens of width 4
        tokens = x.reshape(1, 1, 16, 4)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).reshape(x.shape)


def test_flop_by_hand():
    tile = torch.rand(1, 1, 4, 4, 4)
    # 2 x 2 x 2 outputs, 2 channels, 27 multiply-adds each
    assert benchmarks.gigaflop(nn.Conv3d(1, 2, 3), tile) * 1e9 == pytest.approx(8 * 2 * 27 * 2)
    # q k^T and the product with v: 16 x 16 x 4 multiply-adds each, although the fused kernel hides them
    assert benchmarks.gigaflop(Attend(), tile) * 1e9 == pytest.approx(2 * 16 * 16 * 4 * 2)


def test_rounds_are_interleaved_and_the_order_turns():
    calls: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str):
            super().__init__()
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            return x

    seconds = benchmarks.timed_rounds({name: Named(name) for name in "abc"}, torch.rand(1, 2, 2, 2, 2), options())
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"  # one pass to warm up, then three rounds
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_probabilities_sum_to_one_for_every_kind_of_network():
    network = nn.Conv3d(1, 3, 3, padding=1)
    for dtype in (torch.float32, torch.bfloat16):
        scores = benchmarks.probabilities(network, torch.rand(1, 1, 4, 4, 4), dtype)
        torch.testing.assert_close(scores.float().sum(dim=1), torch.ones(1, 4, 4, 4), atol=1e-2, rtol=0)


def test_ratios_refer_to_the_first_row():
    rows = [{"name": "ours", "parameters": 2e6, "gflop": 10.0, "seconds": 0.5, "fastest": 0.4, "memory": 10**8},
            {"name": "other", "parameters": 4e6, "gflop": 25.0, "seconds": 2.0, "fastest": 1.9, "memory": 3 * 10**8}]
    line = next(row for row in benchmarks.table(rows, options()).splitlines() if row.startswith("other"))
    assert line.split()[1:] == ["4.0", "25.0", "2.50", "2.000", "1.900", "4.00", "300", "3.00"]


def test_without_a_shipped_card_the_default_preset_is_measured(tmp_path):
    config, name = benchmarks.shipped_config(tmp_path)
    assert config["kind"] == "maskmed" and "default preset" in name


def test_the_others_are_what_they_are_said_to_be():
    pytest.importorskip("dynamic_network_architectures")
    with torch.device("meta"):
        network = benchmarks.plain_unet(1, 3, 96)
    widths = [module.out_channels for name, module in network.named_modules()
              if name.endswith("convs.1.conv") and name.startswith("encoder")]
    assert widths == [32, 64, 128, 256, 320, 320]


def test_whole_maps_and_halves_are_measured_side_by_side(capsys):
    bounds = convolution.pyramid.SMALL_MAP
    assert main(["convolution", "--rounds", "1", "--layers-only"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "channels at" in line]
    assert len(rows) == len(convolution.LAYERS) and convolution.pyramid.SMALL_MAP == bounds
    seen = []
    convolution.measure({"a": lambda: seen.append(convolution.pyramid.SMALL_MAP)}, 2)
    assert seen.count((0, 0)) == seen.count(bounds) == 3


def test_options_that_cannot_work(capsys):
    assert main(["tile", "--rounds", "0"]) == 2
    assert "at least one" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["tile", "--device", "cuda:0"]) == 2
        assert "no CUDA device" in capsys.readouterr().err
