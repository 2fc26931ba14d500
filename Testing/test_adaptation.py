"""The adaptation protocol on phantoms: honest pairs, looks and fat labels by rule, resuming, the table's arithmetic."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from encoder_folders import write_encoder
from oneshot_phantoms import phantom
from tiny_models import write_tiny

from HiEndSegLib.errors import InputError, OptionError
from HiEndSegLib.geometry.resample import to_ras_axes
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.loading import load_model
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.operations.segment import segment
from training import adaptation, adaptation_run, adaptation_sequence
from training.adaptation_baselines import Crops, clock_rate, learn_scratch
from training.adaptation_cases import Cases, body_fat
from training.adaptation_looks import AS_IS, LOOKS, with_look
from training.adaptation_run import Pair, RunConfig, ticked
from training.adaptation_table import bar, changes, looks_table, read_result, read_results, table
from training.structures import STRUCTURES, VALUE

NETWORK = {"kind": "maskmed", "num_classes": 5, "in_channels": 2, "img_size": 24, "channels": [8, 8, 16],
           "fsad_dim": 12, "fsad_heads": 2, "fsad_depth": 1, "mask_dim": 8, "head_dim": 12, "head_heads": 2,
           "vit": {"name": "vit_tiny_12p", "embed_dim": 24, "depth": 4, "num_heads": 2}, "taps": [1, 2]}
KNOWN = ("spleen", "kidney_right", "kidney_left", "liver")
PAIR = Pair("balls", "real", "ct-a", ("ct-b",), AS_IS, ("spleen", "liver"))


def write_case(folder, seed, *, names=KNOWN):
    """A folder as in the data: LPS axes, image and label map in NIfTI, names in JSON."""
    image, labels = phantom(seed)
    air = np.full((image.shape[0] + 20, image.shape[1] + 20, image.shape[2]), -1000, np.int16)
    air[10:-10, 10:-10] = image + 60
    padded = np.zeros(air.shape, np.uint8)
    padded[10:-10, 10:-10] = labels
    folder.mkdir(parents=True)
    affine = np.diag([-3.0, -3.0, 3.0, 1.0])
    for name, array in (("image", air), ("labels", padded)):
        nibabel.save(nibabel.Nifti1Image(array[::-1, ::-1], affine), folder / f"{name}.nii.gz")
    (folder / "labels.json").write_text(json.dumps({"0": "background", **{str(VALUE[n]): n for n in names}}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_case(folder / "ct-a", 1)
    write_case(folder / "ct-b", 2)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    labels = [{"value": n, "id": s.id, "name": s.name, "color": list(s.color)}
              for n, s in enumerate((s for s in STRUCTURES if s.id in KNOWN), 1)]
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny", build_network, network=NETWORK, labels=labels,
                      intensity={"unit": "HU", "windows": [[-175, 250], [-1000, 1000]]})


@pytest.fixture(scope="module")
def model(model_folder):
    return load_model(Registry().get(model_folder))


def arguments(data, out, model_folder, *more):
    return [str(data), str(out), "--model", str(model_folder), "--steps", "2", "--crop", "24", *more]


# --------------------------------------------------------------------------------------------------- cases and looks


def test_a_case_has_its_labels_on_its_own_lattice(data, tmp_path):
    case = Cases(data, tmp_path).get("ct-a")
    image, labels = phantom(1)
    assert case.volume.axis_codes == "LPS" and case.labels.shape == case.volume.shape
    assert set(case.annotated) == set(KNOWN)
    assert case.mask("liver").sum() == (labels == VALUE["liver"]).sum()
    ras = to_ras_axes(case.volume).array[10:-10, 10:-10]
    assert np.array_equal(ras, image + 60)


def test_a_case_without_labels_is_refused_and_its_fat_is_offered(data, tmp_path):
    bare = tmp_path / "data" / "ct-c"
    bare.mkdir(parents=True)
    (bare / "image.nii.gz").write_bytes((data / "ct-a" / "image.nii.gz").read_bytes())
    with pytest.raises(InputError, match="fat:ct-c"):
        Cases(bare.parent, tmp_path).get("ct-c")


def test_labels_by_the_model_itself_are_its_answer_as_it_is(data, model, tmp_path):
    own = Cases(data, tmp_path, model)
    case, look = own.get("own:ct-a"), own.get("own:ct-a", "cone-beam")
    assert case.kind == "own" and np.array_equal(case.labels.array, look.labels.array)
    assert not np.array_equal(case.volume.array, look.volume.array)
    answer = segment(model, case.volume)
    for label in answer.legend:
        assert np.array_equal(answer.labels.array == label.value, case.labels.array == VALUE[label.id])
    with pytest.raises(InputError, match="no model"):
        Cases(data, tmp_path).get("own:ct-a")


def volume_of(array, name="somebody", spacing=3.0):
    return Volume(array.astype(np.int16), np.diag([spacing, spacing, spacing, 1.0]), name, {"modality": "CT"})


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_is_the_same_rule_for_everybody(look):
    array = np.full((24, 24, 24), -1000)
    array[4:20, 4:20, :] = 60
    array[4:12, 4:20, :] = -100
    one, again, other = (with_look(volume_of(array, name), look) for name in ("one", "one", "other"))
    assert np.array_equal(one.array, again.array)
    assert not np.array_equal(one.array, other.array)                    # noise of one's own
    assert one.array.dtype == np.int16 and np.array_equal(one.ijk_to_ras, volume_of(array).ijk_to_ras)
    fat, organ = np.s_[6:10, 6:18, 4:20], np.s_[14:18, 6:18, 4:20]
    for where in (fat, organ):
        assert abs(float(one.array[where].mean()) - float(other.array[where].mean())) < 80
    assert one.array[:3, :3].mean() < -900                               # room air stays air
    if look in ("inverted", "mr-like"):
        assert one.array[fat].mean() > one.array[organ].mean() + 100     # CT has it the other way round
    else:
        assert one.array[fat].mean() < one.array[organ].mean() - 50


def test_unknown_look():
    with pytest.raises(OptionError, match="cone-beam"):
        with_look(volume_of(np.zeros((4, 4, 4))), "x-ray vision")


@pytest.mark.parametrize("flip", [False, True])
def test_fat_under_the_skin_and_inside_the_wall(flip):
    x, y = np.meshgrid(*(np.arange(90) - 44.5,) * 2, indexing="ij")
    radius = np.hypot(x, y) * 2.0                                        # mm
    slice_ = np.full(radius.shape, -1000)
    for edge, hu in ((80, -100), (60, 50), (50, -100), (20, 50)):        # fat, wall, fat, an organ
        slice_[radius < edge] = hu
    volume = volume_of(np.repeat(slice_[:, :, None], 12, 2), spacing=2.0)
    if flip:
        volume = Volume(volume.array[::-1], volume.ijk_to_ras @ np.diag([-1.0, 1, 1, 1]), "flipped")
    fat = body_fat(volume)[:, :, 6]
    assert (fat[(radius > 63) & (radius < 74)] == 20).all()
    assert (fat[(radius > 23) & (radius < 47)] == 21).all()
    assert not fat[(radius < 17) | (radius > 81) | ((radius > 53) & (radius < 57))].any()


# ------------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("scored", [("ct-a",), ("ct-b", "fat:ct-a"), ("own:ct-a",), ("ct-a+fat",), ()])
def test_who_is_taught_is_never_scored(scored):
    with pytest.raises(OptionError, match="scor"):
        replace(PAIR, scored=scored)


def test_the_protocol_itself_scores_nobody_it_teaches_and_chooses_looks_on_others():
    used = {name for pair in adaptation.PAIRS for name in (pair.taught, *pair.scored)}
    assert not used & set(adaptation.CHOICE)
    assert len({pair.name for pair in adaptation.PAIRS}) == len(adaptation.PAIRS)
    for pair in adaptation.PAIRS:                                        # nor another image of one organ map
        if pair.taught.startswith("person-"):
            assert pair.taught.split("-")[1] not in [name.split("-")[1] for name in pair.scored]


def test_what_is_good_already_is_not_ticked():
    before = {"spleen": 0.9, "liver": 0.79, "kidney_left": 0.1}
    assert ticked(PAIR, before) == ("liver",)
    assert ticked(replace(PAIR, tick="all"), before) == ("spleen", "liver")


# -------------------------------------------------------------------------------------------------------------- runs


def test_runs_are_kept_and_a_second_call_does_none(data, model_folder, tmp_path, monkeypatch, capsys):
    encoder = write_encoder(tmp_path / "encoder")
    call = arguments(data, tmp_path / "out", model_folder, "--methods", "scratch", "unetr", "--encoder", str(encoder))
    assert adaptation.main(call, [PAIR]) == 0
    files = sorted((tmp_path / "out" / "runs").glob("*.json"))
    assert sorted(read_result(f)["config"]["method"] for f in files) == ["default", "scratch", "unetr"]
    for file in files:
        result = read_result(file)
        method = result["config"]["method"]
        known = set(KNOWN) if method == "default" else {"spleen", "liver"}
        assert set(result["scores"]["ct-b"]) == known
        assert ("ct-a" in result["scores"]) == (method == "default")
        if method != "default":
            assert result["structures"] == ["spleen", "liver"] and result["report"]["steps"] == 2

    def never(*_, **__):
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(adaptation, "run", never)
    assert adaptation.main(call, [PAIR]) == 0
    assert "3 of them finished" in capsys.readouterr().out
    assert adaptation.main([str(tmp_path / "out"), "--table"]) == 0
    text = capsys.readouterr().out
    assert "UNETR fine-tuned" in text and "| liver | ct-b (of unknown origin) |" in text


def test_an_interrupted_protocol_goes_on(data, model_folder, tmp_path, monkeypatch):
    call = arguments(data, tmp_path / "out", model_folder, "--methods", "scratch")
    real = adaptation.run

    def stopped(config, *rest, **more):
        if config.method == "scratch":
            raise KeyboardInterrupt
        return real(config, *rest, **more)

    monkeypatch.setattr(adaptation, "run", stopped)
    assert adaptation.main(call, [PAIR]) == 130
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1
    done = []
    monkeypatch.setattr(adaptation, "run", lambda config, *r, **m: done.append(config.method) or real(config, *r, **m))
    assert adaptation.main(call, [PAIR]) == 0 and done == ["scratch"]


def test_the_others_get_the_seconds_that_quick_took(data, model_folder, tmp_path):
    args = adaptation.parse(arguments(data, tmp_path, model_folder, "--methods", "quick", "scratch"))
    jobs = adaptation.plan(args, [PAIR], load_model(Registry().get(model_folder)))
    assert [job.config.method for job in jobs] == ["default", "quick", "scratch"]
    quick = jobs[1]
    with pytest.raises(OptionError, match="add quick"):
        adaptation.timed(replace(jobs[2], config=replace(jobs[2].config, steps=None)))
    assert jobs[2].quick == quick.target and adaptation.timed(jobs[2]) is None      # as many steps as were told
    quick.target.parent.mkdir()
    quick.target.write_text(json.dumps(made_up("quick", {}, seconds=87.5)))
    assert adaptation.timed(replace(jobs[2], config=replace(jobs[2].config, steps=None))) == 87.5
    assert adaptation.timed(quick) is None


def test_refusals(data, model_folder, tmp_path, capsys):
    assert adaptation.main(arguments(data, tmp_path, model_folder, "--pairs", "nobody"), [PAIR]) == 1
    assert "balls" in capsys.readouterr().err
    assert adaptation.main([str(tmp_path), "--table"]) == 1
    assert "no finished run" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "broken.json").write_text("{}")
    assert adaptation.main([str(tmp_path), "--table"]) == 1
    assert "broken.json" in capsys.readouterr().err
    case = Cases(data, tmp_path).get("ct-a")
    with pytest.raises(InputError, match="Nothing is ticked"):
        adaptation_run.check_teaching(case, ())
    with pytest.raises(InputError, match="colon"):
        adaptation_run.check_teaching(case, ("colon", "liver"))


def test_quick_mode_runs_within_its_time_and_its_own_report_is_kept(data, model_folder, tmp_path, capsys):
    """Also a new structure: fat, which the model has no class for."""
    pair = Pair("fat", "new", "fat:ct-a", ("ct-b+fat",), "mr-like", ("subcutaneous_fat",), "all")
    args = [a for a in arguments(data, tmp_path, model_folder, "--seconds", "60") if a not in ("--crop", "24")]
    assert adaptation.main(args, [pair]) == 0, capsys.readouterr().err
    results = [read_result(path) for path in (tmp_path / "runs").glob("*_quick_*.json")]
    assert len(results) == 1
    report = results[0]["report"]
    assert report["speed"] == "quick" and report["steps"] <= 2 and report["peak_memory_bytes"] > 0
    assert [row["id"] for row in report["taught"]] == ["subcutaneous_fat"]
    assert set(results[0]["scores"]["ct-b+fat"]) == {*KNOWN, "subcutaneous_fat"}
    assert [r["kind"] for r in results[0]["curve"]] and results[0]["curve"][-1]["kind"] == "score"


def test_a_model_around_an_encoder_alone_is_scored_on_others(data, model_folder, tmp_path, capsys):
    """It starts from nothing, so it knows the taught structures and no other, and it takes its own time."""
    encoder = write_encoder(tmp_path / "encoder", spacing=3.0, crop=48)
    call = arguments(data, tmp_path / "out", model_folder, "--methods", "encoder", "--encoder", str(encoder))
    assert adaptation.main(call, [PAIR]) == 0, capsys.readouterr().err
    found = {r["config"]["method"]: r for r in map(read_result, (tmp_path / "out" / "runs").glob("*.json"))}
    assert set(found) == {"default", "encoder"}
    assert set(found["encoder"]["scores"]) == {"ct-b"}
    assert set(found["encoder"]["scores"]["ct-b"]) == {"spleen", "liver"}
    assert all(row["new"] for row in found["encoder"]["report"]["taught"])
    assert json.loads(found["encoder"]["config"]["recipe"])["steps"] == 1200
    assert adaptation.main([str(tmp_path / "out"), "--table"]) == 0
    assert "from an encoder alone" in capsys.readouterr().out


def test_two_lessons_one_after_the_other(data, model_folder, tmp_path, capsys):
    """The second lesson starts from what the first made, and meets its case again only where it is remembered."""
    write_case(tmp_path / "data" / "ct-c", 3)
    for name in ("ct-a", "ct-b"):
        (tmp_path / "data" / name).symlink_to(data / name)
    lesson = adaptation_sequence.Lesson
    sequence = adaptation_sequence.TwoLessons(
        "fat, then liver", lesson("fat:ct-a", ("subcutaneous_fat",), ("ct-b+fat",)),
        lesson("ct-c", ("liver",), ("ct-b",), "cone-beam"))
    words = [str(tmp_path / "data"), str(tmp_path), "--model", str(model_folder), "--steps", "2"]
    assert adaptation_sequence.main(words, [sequence]) == 0, capsys.readouterr().err
    [file] = (tmp_path / "sequences").glob("fat,-then-liver_quick_seed0_*.json")
    result, written = json.loads(file.read_text()), file.stat().st_mtime_ns
    before, first, without, remembered = result["scores"].values()
    assert before["first"] == {"ct-b+fat": {}}                                              # not known yet
    assert all(list(state["first"]["ct-b+fat"]) == ["subcutaneous_fat"] for state in (first, without, remembered))
    assert list(before["second"]["ct-b"]) == ["liver"]
    assert [report["teaching_cases"] for report in result["reports"].values()] == [0, 0, 1]
    assert adaptation_sequence.main(words, [sequence]) == 0 and file.stat().st_mtime_ns == written
    capsys.readouterr()
    assert adaptation_sequence.main([str(tmp_path), "--table"]) == 0
    assert "| first, fat:ct-a (as-is) | subcutaneous fat | ct-b+fat |  | " in capsys.readouterr().out


def test_sequences_with_one_first_lesson_learn_it_once(data, model_folder, tmp_path, monkeypatch, capsys):
    lesson, two = adaptation_sequence.Lesson, adaptation_sequence.TwoLessons
    first = lesson("fat:ct-a", ("subcutaneous_fat",), ("ct-c",))
    sequences = [two("a", first, lesson("ct-b", ("liver",), ("ct-c",))),
                 two("b", first, lesson("ct-b", ("spleen",), ()))]
    write_case(tmp_path / "data" / "ct-c", 3)
    taught = []

    def learn(model, cases, lesson, teaching, args):
        taught.append((lesson.structures, len(teaching)))
        return model, "the case", {}

    monkeypatch.setattr(adaptation_sequence, "learn", learn)
    monkeypatch.setattr(adaptation_sequence, "score", lambda *_, **__: {"liver": 0.5})
    words = [str(tmp_path / "data"), str(tmp_path), "--model", str(model_folder)]
    assert adaptation_sequence.main(words, sequences) == 0, capsys.readouterr().err
    assert taught == [(("subcutaneous_fat",), 0), (("liver",), 0), (("liver",), 1), (("spleen",), 0), (("spleen",), 1)]
    assert adaptation_sequence.main([*words, "--steps", "7"], sequences[:1]) == 0 and len(taught) == 8
    assert adaptation_sequence.main(words, sequences) == 0 and len(taught) == 8             # all finished
    assert adaptation_sequence.main([str(tmp_path), "--table"]) == 0
    assert capsys.readouterr().out.count("| liver | ct-c | 0.500 | 0.500 |") == 2           # each of the two settings
    (tmp_path / "sequences" / "half.json").write_text('{"sequence": {}}')
    assert adaptation_sequence.main([str(tmp_path), "--table"]) == 1
    assert "half.json is not the result" in capsys.readouterr().err


def test_a_sequence_scores_nobody_who_teaches(data, model_folder, tmp_path, capsys):
    lesson, two = adaptation_sequence.Lesson, adaptation_sequence.TwoLessons
    with pytest.raises(OptionError, match="neither"):
        two("x", lesson("fat:ct-a", ("deep_fat",), ("ct-c",)), lesson("ct-b", ("liver",), ("ct-a+fat",)))
    with pytest.raises(OptionError, match="different"):
        two("x", lesson("fat:ct-a", ("deep_fat",), ("ct-c",)), lesson("ct-a", ("liver",), ("ct-b",)))
    assert adaptation_sequence.main([str(data), str(tmp_path), "--names", "nothing"]) == 1
    assert adaptation_sequence.main([str(tmp_path), "--table"]) == 1
    errors = capsys.readouterr().err
    assert "another structure" in errors and "no finished sequence" in errors


def test_a_baseline_learns_what_it_is_taught(data, model, tmp_path):
    """Twenty-five steps from scratch already cut the loss: the crops carry the labels in the right places."""
    case = Cases(data, tmp_path).get("ct-a")
    config = RunConfig(PAIR, "scratch", "tiny", steps=25, crop=24)
    torch.set_num_threads(1)
    learned, report, curve = learn_scratch(config, model, case, ("spleen", "liver"))
    assert report["steps"] == 25 and [label.value for label in learned.card.labels] == [1, 2]
    assert curve[-1]["loss"] < 0.95 * curve[0]["loss"]
    crops = Crops(case, model.card, ("spleen", "liver"), 24, seed=0)
    liver = to_ras_axes(case.volume.with_array(case.mask("liver").astype(np.uint8))).array
    assert np.array_equal(crops.codes == 2, liver == 1)
    assert crops.possible(torch.tensor([0, 1, 2, 3])).tolist() == [1, 2, 4, 7]
    shown = [crops.draw()[1] for _ in range(6)]
    assert all((codes > 0).any() for codes in shown[::2])                # every other one is about a structure


def test_the_clock_sets_the_rate():
    assert clock_rate(0.0, 1.0) < 0.05 and clock_rate(0.1, 1.0) == 1.0
    assert clock_rate(0.05, 1.0) == pytest.approx(0.5) and clock_rate(1.0, 1.0) == pytest.approx(0.0)


# ------------------------------------------------------------------------------------------------------------- table


def made_up(method, scores, *, pair=PAIR, structures=("spleen", "liver"), seconds=10.0, seed=0, **report):
    pair_values = {"name": pair.name, "protocol": pair.protocol, "taught": pair.taught, "scored": list(pair.scored),
                   "look": pair.look, "remark": ""}
    return {"config": {"pair": pair_values, "method": method, "seed": seed, "threads": 1},
            "structures": [] if method == "default" else list(structures), "scores": scores, "kinds": {},
            "report": report, "seconds": {"learning": seconds, "wall": seconds, "scoring": 1.0}}


def test_gains_and_losses_are_counted_as_the_bar_says():
    default = made_up("default", {"ct-b": {"spleen": 0.5, "liver": 0.85, "kidney_left": 0.9, "kidney_right": 0.7}})
    quick = made_up("quick", {"ct-b": {"spleen": 0.7, "liver": 0.9, "kidney_left": 0.88, "kidney_right": 0.696}},
                    steps=100, peak_memory_bytes=2e9)
    found = changes({"default": [default], "quick": [quick]}, "quick")
    assert found == {"taught": [(0.5, 0.7), (0.85, 0.9)], "untaught": [(0.9, 0.88), (0.7, 0.696)]}
    counted = bar([default, quick])
    assert (counted["low"], counted["rose"]) == (1, 1) and counted["low_after"] == 0.7
    assert (counted["untaught"], counted["lost"]) == (2, 1)
    assert counted["untaught_change"] == pytest.approx(-0.012)
    text = table([default, quick])
    assert "0.675 -> 0.800" in text and "| 2.00 |" in text and "-1.2 (2)" in text
    assert "| spleen | ct-b | 0.500 | 0.700 |" in text and "| kidney left | 0.900 -> 0.880 |" in text


def test_runs_of_an_older_recipe_are_not_mixed_in(tmp_path):
    (tmp_path / "runs").mkdir()
    for name, recipe, seed, when in (("b", "old", 0, 100), ("a", "new", 0, 200), ("c", "new", 1, 300)):
        result = made_up("quick", {"ct-b": {"spleen": 0.5}}, seed=seed)
        result["config"]["recipe"] = recipe
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps(result))
        os.utime(tmp_path / "runs" / f"{name}.json", (when, when))
    assert [(r["config"]["recipe"], r["config"]["seed"]) for r in read_results(tmp_path)] == [("new", 0), ("new", 1)]


def test_the_table_of_acquisitions(tmp_path):
    assert looks_table(tmp_path) == ""
    rows = [{"look": look, "case": case, "scores": {"liver": value, "spleen": None}}
            for look, case, value in (
                ("as-is", "p", 0.8), ("as-is", "q", 0.6), ("mr-like", "p", 0.3), ("mr-like", "q", 0.1))]
    (tmp_path / "looks.json").write_text(json.dumps(rows))
    text = looks_table(tmp_path)
    assert "| as-is: as it is | 0.800 | 0.600 | 0.700 |" in text and "| 0.300 | 0.100 | 0.200 |" in text


def test_new_structures_count_from_nothing_and_seeds_are_averaged():
    pair = replace(PAIR, name="fat", protocol="new", structures=("subcutaneous_fat",))
    default = made_up("default", {"ct-b": {"liver": 0.8}}, pair=pair)
    runs = [made_up("quick", {"ct-b": {"subcutaneous_fat": v, "liver": 0.8}}, pair=pair, seed=seed,
                    structures=("subcutaneous_fat",)) for seed, v in enumerate((0.6, 0.9))]
    assert changes({"default": [default], "quick": runs}, "quick")["taught"] == [(0.0, 0.75)]
    counted = bar([default, *runs])
    assert (counted["new"], counted["new_reached"], counted["low"]) == (1, 1, 0)
    assert "thresholds and morphology" in table([default, *runs])
