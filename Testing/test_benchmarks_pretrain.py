"""What the benchmark of pre-training counts: the paper's figures, a tiny network by hand; its timings are no test."""

from __future__ import annotations

import argparse
import math
import re

import pytest
import torch

from HiEndSegLib.errors import OptionError
from HiEndSegLib.networks.hi_end_mae import HI_END_MAE_VARIANTS, HiEndMAE
from training.benchmarks import pretrain
from training.benchmarks.__main__ import main
from training.benchmarks.machine import measured_apart, resident_peak
from training.benchmarks.multiply_adds import HONEST, PAPER, decoder_count, encoder_count, projections_count


def options(**changes) -> argparse.Namespace:
    return argparse.Namespace(**{"variant": "vit_tiny_12p", "batch": 2, "precision": "fp32", "rounds": 3,
                                 "device": "cpu", "threads": None, **changes})


def cut(count: int, digits: int = 2) -> float:
    return math.floor(count / 1e9 * 10**digits) / 10**digits


# decoder of MAE and Hi-End-MAE as printed in the paper (digits cut), honestly counted (rounded), and the encoder
@pytest.mark.parametrize("name, printed, honest, encoder", [
    ("hi_end_mae_vit_base_16p", (3.51, 2.38), (3.710, 2.716), 4.90),
    ("hi_end_mae_vit_large_16p", (6.41, 4.39), (6.684, 4.849), 19.15),
    ("hi_end_mae_vit_large_12p", (16.44, 10.69), (16.444, 11.741), 44.80)])
def test_the_papers_costs(name, printed, honest, encoder):
    networks = [pretrain.weightless(name, stages) for stages in (0, 3)]
    assert tuple(cut(decoder_count(network, PAPER)) for network in networks) == printed
    assert [decoder_count(network, HONEST) / 1e9 for network in networks] == pytest.approx(honest, abs=6e-4)
    assert encoder_count(networks[1]) / 1e9 == pytest.approx(encoder, abs=5e-3)


def test_the_papers_costs_of_one_and_two_stages():
    counted = {row["stages"]: row["paper"] for row in pretrain.counts() if row["variant"].endswith("large_12p")}
    assert [cut(counted[stages]) for stages in (0, 1, 2, 3)] == [16.44, 14.52, 12.61, 10.69]


def test_counts_by_hand():
    with torch.device("meta"):  # 27 patches, 6 visible; 28 tokens, 7 of them known to the encoder
        network = HiEndMAE(img_size=12, patch_size=4, embed_dim=12, depth=2, num_heads=2, mlp_ratio=2.0,
                           decoder_embed_dim=6, decoder_num_heads=1, dense_stages=1, stage_indices=(0,),
                           decoder_self_depth=1)
    d, n, s, hidden = 6, 28, 7, 12
    plain = n * (4 * d * d + 2 * d * hidden) + 2 * n * n * d + 2 * 5 * n * d
    cross = plain + n * 2 * d * d + s * 2 * d * d + 2 * n * s * d + 5 * n * d
    last = 5 * n * d + n * d * 64
    assert decoder_count(network) == plain + cross + last
    products = 2 * n * n * d + 2 * n * s * d
    assert decoder_count(network, PAPER) == plain + cross - products + 5 * n * d + n * d * 1728
    assert decoder_count(network, all_rows=False) == plain + cross + 21 * (5 * d + d * 64)
    assert projections_count(network) == 2 * s * 12 * 6
    block = s * (4 * 144 + 2 * 12 * 24) + 2 * s * s * 12 + 2 * 5 * s * 12
    assert encoder_count(network) == 2 * block + 5 * s * 12 + 6 * 64 * 12
    assert not any(module._forward_hooks for module in network.modules())  # nothing is left behind


def test_our_presets_save_what_they_should_by_count():
    for name in ("vit_tiny_12p", "vit_small_12p"):
        ours, plain = (sum(pretrain.step_count(name, stages)) for stages in (3, 0))
        assert plain / ours > 1.15, name


def test_steps_alternate_and_the_order_turns():
    calls: list[str] = []
    steps = {name: lambda crops, shuffle, name=name: calls.append(name) or 0.0 for name in "ab"}
    seconds = pretrain.timed_steps(steps, (torch.zeros(1), torch.zeros(1)), 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # one step to warm up, then three rounds
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


@pytest.fixture
def small_variant(monkeypatch):
    """The default variant's name, for a network that takes no time."""
    monkeypatch.setitem(HI_END_MAE_VARIANTS, "vit_tiny_12p", {
        "encoder": {"embed_dim": 24, "num_heads": 2, "depth": 10, "patch_size": 12, "img_size": 24},
        "decoder_embed_dim": 12, "decoder_num_heads": 2})


def test_a_step_learns(small_variant):
    crops, shuffle = pretrain.random_batch(options())
    assert crops.shape == (2, 1, 24, 24, 24) and torch.equal(shuffle, pretrain.random_batch(options())[1])
    for precision, stages in (("fp32", 3), ("bf16", 0)):
        step = pretrain.make_step(stages, options(precision=precision))
        losses = [step(crops, shuffle) for _ in range(10)]
        assert losses[-1] < losses[0]


def test_ratios_refer_to_the_first_row():
    rows = [{"name": "Hi-End-MAE", "encoder": 10**9, "decoder": 10**9, "seconds": 2.0, "fastest": 1.5, "work": 1.0,
             "memory": 10**8},
            {"name": "MAE", "encoder": 10**9, "decoder": 2 * 10**9, "seconds": 3.0, "fastest": 2.5, "work": 1.2,
             "memory": 2 * 10**8}]
    line = next(row for row in pretrain.steps_table(rows, options()).splitlines() if row.startswith("MAE"))
    assert line.split()[1:] == ["1.000", "2.000", "1.500", "3.000", "2.500", "1.500", "1.200", "1.200", "200", "2.000"]


def test_options_that_cannot_work(capsys):
    assert main(["pretrain", "--batch", "0"]) == 2
    assert "at least one" in capsys.readouterr().err
    assert main(["pretrain", "--rounds", "0"]) == 2


def test_peak_memory_sees_what_was_held():
    before = resident_peak()
    block = torch.ones(max(before, 2**26) // 4)  # as much again as ever before, in float32
    assert resident_peak() - before > 2**25
    del block


def test_as_a_command(capsys, small_variant, monkeypatch):
    assert main(["pretrain", "--count-only"]) == 0
    assert "training step" not in capsys.readouterr().out
    asked = []
    monkeypatch.setattr(pretrain, "measured_apart", lambda arguments, *_: asked.append(arguments[2]) or 5 * 10**6)
    assert main(["pretrain", "--batch", "1", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    row = re.search(r"^MAE\s+(.*)$", printed, re.MULTILINE).group(1).split()
    encoder, rest = pretrain.step_count("vit_tiny_12p", 0)
    assert row[:2] == [f"{encoder / 1e9:.3f}", f"{rest / 1e9:.3f}"] and float(row[3]) > 0
    assert (row[8], asked) == ("5", ["3", "0"])


def test_memory_is_measured_in_a_process_of_its_own():
    arguments = ["pretrain", "--memory-of", "3", "--batch", "1"]
    # Weights, gradients and two moments of 4.2 million parameters alone take 67 MB.
    assert 60e6 < measured_apart(arguments, 1, "the memory") < 1e9
    with pytest.raises(OptionError, match="Measuring the memory failed: .*at least one"):
        measured_apart([*arguments[:-1], "0"], None, "the memory")
