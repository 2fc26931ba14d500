"""The one-shot protocol on phantoms: fair rows, no score on the labelled case, resuming, the table's arithmetic."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_folders import write_encoder
from monai.losses import DiceCELoss
from oneshot_phantoms import SKIPS, TINY, write_case, write_synthetic

from HiEndSegLib.errors import InputError
from HiEndSegLib.networks.position import sincos_position_3d
from HiEndSegLib.networks.vit import VisionTransformer3D
from training import oneshot
from training.oneshot_cases import (
    Task,
    labels_from_bits,
    map_of,
    read_case,
    real_tasks,
    synthetic_images,
    synthetic_task,
    taught_classes,
)
from training.oneshot_run import (
    RunConfig,
    crops_of,
    dice_ce_loss,
    initial_network,
    learning_rate,
    predict,
    run,
    score,
    windows_of,
)
from training.oneshot_table import mean_spread, paired_difference, read_results, table
from training.structures import bit

WINDOW = (-175.0, 250.0)
CLASSES = ("spleen", "kidney_left", "liver")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("cache"))


def config(task=None, row="scratch", weights="", seed=0, steps=2, **more) -> RunConfig:
    task = task or Task("synthetic", "organs", "synthetic-01-0-0", ("synthetic-02-0-0",), CLASSES)
    return RunConfig(task, row, weights, seed, steps, network={**TINY, **SKIPS},
                     **{"crop": 24, "feature_size": 2, "precision": "fp32", **more})


def arguments(cache, out, *more):
    return [str(cache), "--out", str(out), "--data", "synthetic", "--seeds", "0", "--steps", "2", "--crop", "24",
            "--feature-size", "2", "--network", json.dumps({**TINY, **SKIPS}), "--precision", "fp32", "--threads", "1",
            "--score-maps", "1", *more]


def encoder_state(seed=5):
    torch.manual_seed(seed)
    return VisionTransformer3D(img_size=96, **TINY).state_dict()


# ------------------------------------------------------------------------------------------------------------- cases


def test_labels_are_certain_absent_or_unknown():
    possible = np.array([bit("background"), bit("spleen"), bit("liver"), bit("spleen", "background"), bit("colon"),
                         bit("colon", "liver"), bit("background", "colon")], np.uint32)
    assert labels_from_bits(possible, ("spleen", "liver")).tolist() == [0, 1, 2, 255, 0, 255, 0]
    assert labels_from_bits(possible, ("liver",)).tolist() == [0, 0, 1, 0, 0, 255, 0]


def test_a_map_is_never_scored_on_images_of_its_own(cache):
    images = synthetic_images(cache, WINDOW)
    assert images["03"] == ("synthetic-03-0-1", CLASSES)           # its first image lacks a kidney
    assert {name for name, _ in images.values()} >= {"synthetic-01-0-0", "synthetic-02-0-0"}
    tasks = [synthetic_task(images, turn) for turn in range(4)]
    assert sorted(map_of(task.labelled) for task in tasks) == ["01", "02", "03", "04"]
    for task in tasks:
        assert sorted(map(map_of, (task.labelled, *task.scored))) == ["01", "02", "03", "04"]
    assert synthetic_task(images, 5, 2).scored == synthetic_task(images, 1, 3).scored[:2]
    with pytest.raises(InputError, match="two organ maps"):
        synthetic_task({"01": images["01"]}, 0)


def test_real_cases_take_turns_and_never_score_themselves():
    tasks = real_tasks()
    assert {(t.labelled, t.scored) for t in tasks if t.group == "abdomen"} == {
        ("ct-abdomen-01", ("ct-abdomen-02",)), ("ct-abdomen-02", ("ct-abdomen-01",))}
    assert all(t.labelled not in t.scored for t in tasks)


def test_the_labelled_case_is_never_scored(cache):
    same = Task("real", "abdomen", "synthetic-01-0-0", ("synthetic-02-0-0", "synthetic-01-0-0"), CLASSES)
    with pytest.raises(InputError, match="cannot be scored"):
        run(config(same), cache)


def test_development_labels_and_prepared_bits_read_alike(tmp_path):
    organs = ("spleen", "kidney_right", "kidney_left", "liver")
    write_case(tmp_path, "a", 3)
    write_case(tmp_path, "b", 3, dev=organs)
    a, b = (read_case(tmp_path, name, organs, WINDOW) for name in "ab")
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.image.min() >= 0 and a.image.max() == 200 / 425 + 175 / 425 and a.spacing == (3, 3, 3)
    assert taught_classes(a, organs) == organs


def test_missing_labels_are_said(tmp_path):
    write_case(tmp_path, "ct-abdomen-02", 3, dev=("spleen", "liver"))
    with pytest.raises(InputError, match="ct-abdomen-02 has no labels of kidney_left"):
        read_case(tmp_path, "ct-abdomen-02", CLASSES, WINDOW)
    write_case(tmp_path, "ct-abdomen-01", 3, without=("liver",))
    task = Task("real", "abdomen", "ct-abdomen-01", ("ct-abdomen-02",), CLASSES)
    with pytest.raises(InputError, match="too few labelled voxels of liver"):
        run(config(task), tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(InputError, match="damaged"):
        read_case(tmp_path, "broken", CLASSES, WINDOW)


# ------------------------------------------------------------------------------------------------------- loss, scores


def test_loss_is_the_published_one_where_all_is_annotated():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, 6, 7), torch.randint(0, 4, (2, 5, 6, 7), dtype=torch.uint8)
    published = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
    torch.testing.assert_close(dice_ce_loss(logits, labels), published(logits, labels[:, None].long()))


def test_unannotated_voxels_enter_neither_loss_nor_gradient_nor_score():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 3, 4, 4, 6), torch.randint(0, 3, (1, 4, 4, 6), dtype=torch.uint8)
    labels[..., 4:] = 255
    whole = logits.clone().requires_grad_()
    loss = dice_ce_loss(whole, labels)
    loss.backward()
    torch.testing.assert_close(loss, dice_ce_loss(logits[..., :4], labels[..., :4]))
    assert whole.grad[..., 4:].abs().max() == 0 < whole.grad[..., :4].abs().min()
    nothing = torch.full_like(labels, 255)
    assert float(dice_ce_loss(logits, nothing)) == 0.0


def test_scores_by_hand(cache):
    case = read_case(cache, "synthetic-01-0-0", CLASSES, WINDOW)
    found = np.where(case.labels == 1, 0, case.labels)              # no spleen; the other organs as they are
    assert score(found, case, CLASSES) == {"spleen": 0.0, "kidney_left": 1.0, "liver": 1.0}
    lacking = read_case(cache, "synthetic-03-0-0", CLASSES, WINDOW)
    assert set(score(found, lacking, CLASSES)) == {"spleen", "liver"}    # what is not there cannot be scored


def test_windows_are_counted_as_the_inferer_makes_them(cache):
    seen = []

    class Counting(torch.nn.Module):
        def forward(self, x):
            seen.append(x.shape)
            return x.new_zeros(len(x), 4, *x.shape[2:])

    case = read_case(cache, "synthetic-01-0-0", CLASSES, WINDOW)
    for overlap in (0.0, 0.25, 0.5):
        seen.clear()
        found = predict(Counting(), case, config(overlap=overlap))
        assert len(seen) == windows_of(case, config(overlap=overlap)) and found.shape == case.image.shape


def test_schedule_rises_and_falls():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[4] == 0.5
    assert all(a > b for a, b in zip(rates[9:], rates[10:])) and 0 < rates[-1] < 1e-3
    assert learning_rate(49, 99, 1.0, 0.0) == pytest.approx(0.5)


# ---------------------------------------------------------------------------------------------------------- fair rows


def test_rows_differ_only_in_the_encoder_they_start_with(cache):
    rows = {"scratch": None, "random": None, "MAE": encoder_state()}
    states = {row: initial_network(config(row=row), weights).state_dict() for row, weights in rows.items()}
    for key, value in states["scratch"].items():
        for row in ("random", "MAE"):
            if not key.startswith("vit."):
                assert torch.equal(value, states[row][key]), key
    first = "vit.blocks.0.mlp.linear1.weight"
    assert len({states[row][first].sum().item() for row in rows}) == 3
    torch.testing.assert_close(states["MAE"][first], rows["MAE"]["blocks.0.mlp.fc1.weight"])
    case = read_case(cache, "synthetic-01-0-0", CLASSES, WINDOW)
    drawn = [next(iter(crops_of(case, config(row=row, weights=row)))) for row in rows]
    assert all(torch.equal(drawn[0][0], images) and torch.equal(drawn[0][1], labels) for images, labels in drawn)
    other = next(iter(crops_of(case, config(seed=1))))
    assert not torch.equal(other[0], drawn[0][0])


def test_half_of_the_crops_see_each_class_alike(cache):
    case = read_case(cache, "synthetic-01-0-0", CLASSES, WINDOW)
    task = Task("synthetic", "organs", "synthetic-01-0-0", ("synthetic-02-0-0",), CLASSES)
    middles = []
    for _, (images, labels) in zip(range(300), crops_of(case, config(task, crop=12))):
        assert images.shape == (1, 1, 12, 12, 12) and labels.shape == (1, 12, 12, 12)
        middles.append(int(labels[0, 6, 6, 6]))
    counts = np.bincount(middles, minlength=4) / 300
    assert 0.38 < counts[0] < 0.62 and counts[1:].min() > 0.1 and counts[1:].max() < 0.24


def test_positions_keep_the_distances_of_pretraining():
    table = initial_network(config(row="MAE"), encoder_state()).vit.patch_embedding.position_embeddings
    pretrained = sincos_position_3d(8, 24).reshape(8, 8, 8, 24)
    torch.testing.assert_close(table.detach().reshape(2, 2, 2, 24), pretrained[:2, :2, :2])


def test_a_run_learns_and_is_repeatable(cache):
    task = Task("synthetic", "organs", "synthetic-01-0-0", ("synthetic-02-0-0",), ("spleen", "kidney_left"))
    first = run(replace(config(task, steps=40, lr=1e-2, precision="bf16"), feature_size=4), cache)
    assert first["loss"][-1] < 0.75 * first["loss"][0] and first["mean"] > 0.3
    assert set(first["scores"]) == {"synthetic-02-0-0"}
    again, other = (run(config(steps=3, seed=seed), cache) for seed in (3, 4))
    assert run(config(steps=3, seed=3), cache)["loss"] == again["loss"] != other["loss"]


def test_a_run_that_diverges_ends_in_a_sentence(cache):
    with pytest.raises(InputError, match="lower --lr"):
        run(config(steps=5, lr=1e30), cache)


# ------------------------------------------------------------------------------------------------------ command line


def test_stopped_runs_go_on_where_they_were(cache, tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "out", []

    def counted(config, *rest):
        if len(calls) == 1 and stop:
            raise KeyboardInterrupt
        calls.append(config.row)
        return run(config, *rest)

    monkeypatch.setattr(oneshot, "run", counted)
    stop = True
    assert oneshot.main(arguments(cache, out, "--rows", "scratch", "random")) == 130
    assert len(list(out.iterdir())) == len(calls) == 1
    kept = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    stop = False
    assert oneshot.main(arguments(cache, out, "--rows", "scratch", "random")) == 0
    assert calls == ["scratch", "random"] and len(list(out.iterdir())) == 2
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert oneshot.main(arguments(cache, out, "--rows", "scratch", "random")) == 0 and len(calls) == 2
    assert "2 runs, 2 of them finished" in capsys.readouterr().out
    assert oneshot.main(arguments(cache, out, "--rows", "scratch", "--lr", "0.002")) == 0 and len(calls) == 3
    assert oneshot.main(["--out", str(out), "--table"]) == 0
    printed = capsys.readouterr().out
    assert "| synthetic organs | 2 | scratch | 1 |" in printed and "AdamW 0.002" in printed and "AdamW 0.001" in printed


def test_two_at_a_time_give_what_one_after_the_other_gives(cache, tmp_path, capsys):
    for jobs, out in (("1", tmp_path / "one"), ("2", tmp_path / "two")):
        assert oneshot.main(arguments(cache, out, "--rows", "scratch", "random", "--jobs", jobs)) == 0
    one, two = (read_results(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 2 and "2/2 " in capsys.readouterr().out
    assert [(r["config"], r["loss"], r["scores"]) for r in one] == [(r["config"], r["loss"], r["scores"]) for r in two]


def test_an_exported_encoder_is_a_row_of_its_own(cache, tmp_path, capsys):
    folder = write_encoder(tmp_path / "encoder", training={"step": 7, "volumes": ["synthetic-01-0-0"]})
    assert oneshot.main(arguments(cache, tmp_path / "out", "--rows", f"MAE={folder}")) == 0
    (found,) = read_results(tmp_path / "out")
    assert found["encoder"]["names"] == ["synthetic-01-0-0"] and len(found["config"]["weights"]) == 64
    assert str(tmp_path) not in json.dumps(found)
    assert "MAE: Tiny encoder (7 steps at 1.5 mm on 1 volumes); here the voxels are 3 mm" in table([found])
    write_encoder(folder, seed=6)                       # pretrained further: another run, not the old one's result
    capsys.readouterr()
    assert oneshot.main(arguments(cache, tmp_path / "out", "--rows", f"MAE={folder}", "--estimate")) == 0
    assert "1 runs, 0 of them finished" in capsys.readouterr().out


@pytest.mark.parametrize("more, sentence", [
    ({"embed_dim": 48}, "width 48"), ({"num_heads": 4}, "4 attention heads"),
    ({"window": (-1000.0, 1000.0)}, "give --window")])
def test_an_encoder_that_does_not_fit_ends_in_a_sentence(cache, tmp_path, capsys, more, sentence):
    folder = write_encoder(tmp_path / "encoder", **more)
    assert oneshot.main(arguments(cache, tmp_path / "out", "--rows", "scratch", f"MAE={folder}")) == 1
    printed = capsys.readouterr().err
    assert sentence in printed and "Row MAE" in printed and not (tmp_path / "out").exists()


def test_estimate_runs_nothing(cache, tmp_path, capsys):
    assert oneshot.main(arguments(cache, tmp_path / "out", "--estimate")) == 0
    assert "1 runs, 0 of them finished" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, sentence", [
    (("--rows", "MAE"), "NAME=FOLDER"),
    (("--rows", "scratch", "scratch"), "a name of its own"),
    (("--crop", "50"), "take 48"),
    (("--rows", "MAE=nowhere"), "nowhere"),
    (("--data", "real"), "There is no prepared case ct-abdomen-01"),
    (("--steps", "0"), "steps must be positive"),
    (("--device", "cuda:99"), "take --device cpu"),
])
def test_bad_options_end_in_a_sentence(cache, tmp_path, capsys, more, sentence):
    assert oneshot.main(arguments(cache, tmp_path / "out", *more)) == 1
    printed = capsys.readouterr().err
    assert sentence in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_empty_folders_end_in_a_sentence(tmp_path, capsys):
    assert oneshot.main(arguments(tmp_path, tmp_path / "out")) == 1
    assert "two organ maps" in capsys.readouterr().err
    assert oneshot.main(["--out", str(tmp_path), "--table"]) == 1
    assert "no finished run" in capsys.readouterr().err
    assert oneshot.main(["--out", str(tmp_path / "none"), "--table"]) == 1
    (tmp_path / "odd.json").write_text('{"config": 3}')
    with pytest.raises(InputError, match="odd.json is not the result"):
        read_results(tmp_path)


# -------------------------------------------------------------------------------------------------------------- table


def result(row, labelled, seed, dice, *, data="synthetic", group="organs", scored=("synthetic-09-0-0",), about=None,
           steps=10, weights=""):
    """A finished run; dice: {class: value} of the one scored case."""
    task = {"data": data, "group": group, "labelled": labelled, "scored": list(scored), "classes": list(dice)}
    settings = {"variant": "vit_tiny_12p", "feature_size": 8, "crops": 1, "crop": 72, "lr": 1e-3, "precision": "bf16",
                "window": [-175.0, 250.0], "overlap": 0.25}
    return {"config": {**settings, "task": task, "row": row, "weights": weights, "seed": seed, "steps": steps},
            "scores": {scored[0]: dice}, "mean": math.fsum(dice.values()) / len(dice), "spacing": [3.0] * 3,
            "encoder": about}


def test_table_against_hand_numbers():
    about = {"id": "t", "title": "Tiny encoder", "steps": 500, "spacing": 1.5, "volumes": 3,
             "names": ["synthetic/synthetic-01-0-0", "ct-abdomen-01/image", "synthetic-09-1-1"]}
    runs = [result("scratch", "synthetic-01-0-0", 0, {"spleen": 0.2, "liver": 0.4}),
            result("scratch", "synthetic-02-0-0", 1, {"spleen": 0.4, "liver": 0.6}),
            result("scratch", "synthetic-03-0-0", 2, {"spleen": 0.0, "liver": 0.0}),     # has no partner: not paired
            result("MAE", "synthetic-01-0-0", 0, {"spleen": 0.4, "liver": 0.4}, about=about, weights="aa"),
            result("MAE", "synthetic-02-0-0", 1, {"spleen": 0.4, "liver": 0.5}, about=about, weights="aa")]
    assert mean_spread([0.3, 0.5]) == pytest.approx((0.4, math.sqrt(0.02))) and mean_spread([0.3]) == (0.3, None)
    # 0.40 - 0.30 and 0.45 - 0.50: mean 0.025, deviations of 0.075 either way
    mean, spread, better, count = paired_difference(runs, "MAE", "scratch")
    assert (mean, spread, better, count) == (pytest.approx(0.025), pytest.approx(math.sqrt(2 * 0.075 ** 2)), 1, 2)
    assert paired_difference(runs, "MAE", "Hi-End-MAE") is None
    text = table(runs)
    assert "| synthetic organs | 10 | scratch | 3 | 0.267 ± 0.252 |" in text
    assert "| synthetic organs | 10 | MAE | 2 | 0.425 ± 0.035 | +0.025 ± 0.106 (better in 1 of 2) |" in text
    assert "| MAE | 0.400 | 0.450 |" in text and "| scratch | 0.200 | 0.333 |" in text
    saw = "pre-training saw the images (never the labels) of"
    assert (f"MAE: Tiny encoder (500 steps at 1.5 mm on 3 volumes); here the voxels are 3 mm; {saw} 1 of 2 labelled "
            f"cases (synthetic-01-0-0); {saw} 0 of 1 scored cases, and other images of 1 of the scored maps.") in text
    assert "3 labelled organ maps, 1 scored;" in text


def test_table_tells_real_directions_and_encoders_of_one_name_apart():
    about = {"id": "t", "title": "", "steps": 5, "spacing": 3.0, "names": ["ct-abdomen-01/image"]}
    runs = [result("MAE", "ct-abdomen-01", seed, {"liver": 0.5}, data="real", group="abdomen", about=about,
                   scored=("ct-abdomen-02",), weights=weights) for seed, weights in ((0, "aaaaaaaa"), (0, "bbbbbbbb"))]
    text = table(runs)
    assert "| ct-abdomen-01 | ct-abdomen-02 | 10 | MAE aaaaaa | 1 | 0.500 | labelled |" in text
    assert "MAE bbbbbb" in text and "(better in 0 of 1)" in text and "1 labelled case in all" in text
    silent = table([{**runs[0], "encoder": {**about, "names": []}}])
    assert "| not told |" in silent and "does not say which images" in silent
    held = {**about, "names": ["ct-abdomen-*"], "held_out": ["data/ct-abdomen-02/image"]}
    assert "| labelled |" in table([{**runs[0], "encoder": held}])


def test_the_token_decoder_learns_and_takes_the_same_encoders(cache):
    task = Task("synthetic", "organs", "synthetic-01-0-0", ("synthetic-02-0-0",), ("spleen", "kidney_left"))
    token = replace(config(task, steps=40, lr=5e-3), decoder="token")
    first = run(token, cache)
    assert first["loss"][-1] < 0.8 * first["loss"][0]
    scratch, loaded = initial_network(token), initial_network(replace(token, row="MAE"), encoder_state())
    torch.testing.assert_close(loaded.vit.blocks[0].mlp.fc1.weight, encoder_state()["blocks.0.mlp.fc1.weight"])
    for (name, one), (_, other) in zip(scratch.named_parameters(), loaded.named_parameters()):
        assert name.startswith("vit.") or torch.equal(one, other)
