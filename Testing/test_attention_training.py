"""The statistic of attention and anatomy against networks whose attention is known; the benchmark's table."""

from __future__ import annotations

import argparse
import json

import attention_models as am
import nibabel
import numpy as np
import pytest
import torch
from test_attention_engine import write

from training import attention_share
from training.attention_share import Shares, labelled_cases, markdown, ratios, read_case, shares_of
from training.benchmarks import attention as benchmark


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One case: a body of black tissue with a bright "liver" and an equally bright "spleen", and a lot of nothing."""
    folder = tmp_path_factory.mktemp("data")
    array = np.full((32, 32, 32), -1000, np.int16)
    array[4:28, 4:28, 4:28] = -200
    labels = np.zeros(array.shape, np.uint8)
    labels[8:16, 8:16, 8:24] = 3
    labels[20:24, 20:24, 8:24] = 7
    array[labels > 0] = 250
    case = folder / "ct-test-01"
    case.mkdir()
    matrix = np.diag([-5.0, -5.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(array, matrix), case / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, matrix), case / "labels.nii.gz")
    (case / "labels.json").write_text(json.dumps({"3": "liver", "7": "spleen", "9": "never"}))
    (folder / "ct-without-labels").mkdir()
    return folder


def test_cases_and_points_lie_in_their_organs(data):
    assert labelled_cases(data) == ["ct-test-01"]
    case = read_case(data / "ct-test-01", 5, seed=0)
    assert sorted(case.points) == ["liver", "spleen"]
    for structure, value in (("liver", 5), ("spleen", 1)):
        assert case.points[structure].shape == (5, 3)
        index = np.rint((case.labels.ras_to_ijk @ np.c_[case.points[structure], np.ones(5)].T)[:3].T).astype(int)
        assert (case.labels.array[tuple(index.T)] == value).all()
    again = read_case(data / "ct-test-01", 5, seed=0)
    np.testing.assert_array_equal(case.points["liver"], again.points["liver"])


def test_a_network_that_looks_at_bright_tissue_only(data):
    """Attention lies on the bright tokens alone, each the same: the shares follow by counting them."""
    case = read_case(data / "ct-test-01", 4, seed=0)
    model = am.model(am.PeakedNet(img_size=32, patch_size=4, depth=2), tile=32, spacing=5.0)
    shares = shares_of("bright", [model], [case])
    # of 512 tokens the liver has 2 x 2 x 4 = 16 and the spleen 1 x 1 x 4 = 4
    for structure, tokens in (("liver", 16), ("spleen", 4)):
        key = ("ct-test-01", structure)
        np.testing.assert_allclose(shares.of_window[key], tokens / 20, atol=1e-3)
        assert shares.window_base[key] == pytest.approx(tokens / 512, rel=1e-6)
        # the body has 6^3 tokens; the query's own one does not count
        assert shares.body_base[key] == pytest.approx((tokens - 1) / (216 - 1), rel=0.05)
        np.testing.assert_allclose(shares.of_body[key], (tokens - 1) / 19, atol=1e-2)


def test_an_even_network_comes_out_at_one_and_seeds_are_averaged(data):
    case = read_case(data / "ct-test-01", 2, seed=0)
    even = am.model(am.PeakedNet(img_size=32, depth=2, sharp=0.0), tile=32, spacing=5.0)
    peaked = am.model(am.PeakedNet(img_size=32, depth=2), tile=32, spacing=5.0)
    one, other, both = (shares_of("x", models, [case]) for models in ([even], [peaked], [even, peaked]))
    np.testing.assert_allclose(ratios(one.of_window, one.window_base), 1.0, atol=1e-4)
    np.testing.assert_allclose(ratios(one.of_body, one.body_base), 1.0, atol=1e-4)
    for key in one.of_window:
        np.testing.assert_allclose(both.of_window[key], (one.of_window[key] + other.of_window[key]) / 2, rtol=1e-5)
    text = markdown([other, one], [case], 2)
    assert "| block | x, of the window | x |" in text and "1.00 (" in text and "| liver | 1 |" in text


def test_the_command_writes_markdown_and_numbers(data, tmp_path, capsys, monkeypatch):
    model = write(tmp_path / "model")
    out = tmp_path / "shares.json"
    code = attention_share.main([str(data), "--rows", f"small={model}", f"again={model}", "--points", "1", "--out",
                                 str(out)])
    printed = capsys.readouterr()
    assert code == 0 and "### Attention and anatomy" in printed.out and "| 3 | " in printed.out
    rows = json.loads(out.read_text())
    assert [row["row"] for row in rows] == ["small", "again"] and rows[0]["organs"] == rows[1]["organs"]
    for arguments, words in (([str(tmp_path / "no")], "no folder"), ([str(data), "--points", "0"], "1 or more"),
                             ([str(data), "--cases", "ct-without-labels"], "name another case"),
                             ([str(data), "--rows", "unheard-of", "--points", "1"], "unheard-of")):
        assert attention_share.main(arguments) == 2
        assert words in capsys.readouterr().err


def test_organs_of_one_token_are_left_out_of_ratios():
    row = Shares("x", {("a", "liver"): np.ones(2), ("a", "spleen"): np.ones(2)}, {}, {}, {})
    assert ratios(row.of_window, {("a", "liver"): 0.5, ("a", "spleen"): 0.0}).tolist() == [[2.0, 2.0]]


def test_the_benchmark_measures_every_look(tmp_path):
    model = write(tmp_path / "model")
    options = argparse.Namespace(model=str(model), device="cpu", shape=[30, 30, 30], spacing=[2.0, 2.0, 2.0], rounds=2,
                                 no_engine=True)
    before = torch.get_num_threads()
    text = benchmark.run(options)
    assert torch.get_num_threads() == before
    lines = [line for line in text.splitlines() if line.startswith(tuple(benchmark.NAMES.values()))]
    assert len(lines) == len(benchmark.NAMES) - 1                 # all but the worker process
    plain = next(line for line in lines if line.startswith(benchmark.NAMES["plain"]))
    assert plain.split()[-1] == "1.00"
