"""`hiendseg adapt`: what label values mean, what reaches the engine, what is said; a fake engine does the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from cli_helpers import files_in, run, write_ct, write_real_model
from tiny_models import LABELS, write_bytes_model

from HiEndSegLib.cli import adapt
from HiEndSegLib.engine.adapting import AdaptResult
from HiEndSegLib.errors import Cancelled, OptionError
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.reading import read_volume
from HiEndSegLib.geometry.writing import read_labels, write_labels
from HiEndSegLib.models.registry import Registry

LIVER, KIDNEY = (Label.from_dict(entry) for entry in LABELS)
REPORT = {"sentence": "Liver rose by 11 points.", "worse": ["kidney_left"],
          "taught": [{"id": "liver", "name": "Liver", "new": False, "dice_before": 0.5, "dice_after": 0.61,
                      "surface_before_mm": 4.04, "surface_after_mm": None}],
          "protected": [{"id": "kidney_left", "name": "Left kidney", "agreement": 0.93, "dice_before": None,
                         "dice_after": None}]}


class FakeEngine:
    """Remembers what it was asked; `play` happens while it "trains"."""

    def __init__(self):
        self.asked, self.key, self.play = {}, "mine@1.0.0", lambda record, progress, cancel: None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def adapt(self, volume, labels, legend, *, record, progress, cancel, **asked):
        self.asked = {"volume": volume, "labels": labels, "legend": legend, **asked}
        progress(0.0, "Learning takes about 0.4 GB.")
        self.play(record, progress, cancel)
        return AdaptResult(self.key, REPORT, ["One sentence."], None if self.key else "unsaved")


@pytest.fixture
def engine(tmp_path, monkeypatch):
    write_bytes_model(tmp_path / "models" / "tiny@1.0.0")
    monkeypatch.setenv("HIENDSEG_MODELS", str(tmp_path / "models"))
    engine = FakeEngine()
    monkeypatch.setattr(adapt, "make_engine", lambda options: engine)
    return engine


@pytest.fixture
def ct(tmp_path):
    return write_ct(tmp_path / "ct.nii.gz")


def drawn(ct, values=(1, 2, 5), name="labels.nii.gz", legend=None):
    """Labels on the CT's lattice, one slab per value; a plain NIfTI, or named where a legend is given."""
    volume, array = read_volume(ct), None
    array = np.zeros(volume.shape, np.uint8)
    for number, value in enumerate(values):
        array[4 * number:4 * number + 4, 10:20, 10:20] = value
    path = ct.with_name(name)
    if legend is None:
        nibabel.save(nibabel.Nifti1Image(array, volume.ijk_to_ras), path)
    else:
        write_labels(volume.with_array(array), legend, path)
    return path


def asked(capsys, *arguments, code=0):
    """What the command says, with the exit code checked."""
    got, out, err = run(capsys, "adapt", *arguments, "--model", "tiny")
    assert got == code, err
    return out + err


def test_everything_reaches_the_engine_and_the_scores_are_shown(capsys, engine, ct):
    labels = drawn(ct, (1, 2), "c.seg.nrrd", [LIVER, replace(KIDNEY, id="Segment_2")])
    said = asked(capsys, ct, labels, "--name", "My liver", "--structures", "liver,Left kidney", "--quick", "--device",
                 "cpu", "--steps", 40, "--seed", 7, "--keep-teaching", "--keep-anyway", "--sides", "keep")
    given = engine.asked
    assert given.pop("labels").same_lattice(given.pop("volume"))
    assert [(label.value, label.id) for label in given.pop("legend")] == [(1, "liver"), (2, "kidney_left")]
    assert given.pop("model").endswith("tiny@1.0.0")
    assert given == {"name": "My liver", "structures": ["liver", "kidney_left"], "encoder": None, "speed": "quick",
                     "device": "cpu", "steps": 40, "seed": 7, "keep_teaching": True, "keep_if_worse": True,
                     "sides": "keep", "threads": None}
    for words in ("Teaching Tiny test model: Liver, Left kidney", "Learning takes about 0.4 GB.", "One sentence.",
                  "Liver rose by 11 points.", "Kept as mine@1.0.0", "models remove mine@1.0.0"):
        assert words in said, words
    rows = {line.split("  ")[0]: line.split() for line in said.splitlines() if line.startswith(("Liver  ", "Left k"))}
    assert rows["Liver"] == ["Liver", "taught", "0.500", "0.610", "4.0"]
    assert rows["Left kidney"] == ["Left", "kidney", "worse", "0.930"]


def test_nothing_kept_is_exit_code_1(capsys, engine, ct):
    engine.key = None
    said = asked(capsys, ct, drawn(ct, (1,)), "--name", "x", "--structures", "liver", code=1)
    assert "Nothing was kept" in said and "--keep-anyway" in said and "0.610" in said


def test_values_without_names_are_the_models(capsys, engine, ct):
    said = asked(capsys, ct, drawn(ct), "--name", "x", "--structures", "kidney_left")
    assert [(label.value, label.id) for label in engine.asked["legend"]] == [(1, "liver"), (2, "kidney_left")]
    array = engine.asked["labels"].array
    assert set(np.unique(array)) == {0, 1, 2, 255} and "values 5 were left out" in said and "labels.json" in said


@pytest.mark.parametrize("name, content", [
    ("labels.json", {"0": "background", "1": "kidney_left", "2": "liver", "5": "spleen"}),
    ("drawn.json", {"background": 0, "kidney_left": 1, "liver": 2, "spleen": 5}),
    ("labels.json", {"labels": {"kidney_left": 1, "Liver": 2, "Spleen": 5}}),
    ("labels.json", [{"value": 1, "id": "kidney_left"}, {"value": 2, "name": "Liver"}, {"value": 5, "id": "spleen"}])])
def test_a_json_beside_names_the_values(capsys, engine, ct, name, content):
    labels = drawn(ct, name="drawn.nii.gz")
    ct.with_name(name).write_text(json.dumps(content))
    said = asked(capsys, ct, labels, "--name", "x", "--structures", "spleen,Liver", "--structures", "kidney_left")
    legend = engine.asked["legend"]
    assert [(label.value, label.id, label.name) for label in legend] == [
        (1, "kidney_left", "Left kidney"), (2, "liver", "Liver"), (5, "spleen", "Spleen")]
    assert legend[1].color == LIVER.color and legend[2].color not in (LIVER.color, KIDNEY.color)
    assert engine.asked["structures"] == ["spleen", "liver", "kidney_left"] and "Spleen (new)" in said


def test_new_structures_by_value_and_by_name(capsys, engine, ct):
    asked(capsys, ct, drawn(ct), "--name", "x", "--new", "5:cyst=Renal cyst")
    assert [(label.value, label.id, label.name) for label in engine.asked["legend"]][-1] == (5, "cyst", "Renal cyst")
    assert engine.asked["structures"] == ["cyst"]
    segments = drawn(ct, (1, 5), "c.seg.nrrd", [LIVER, Label(5, "Segment_1", "Big cyst", (1, 2, 3))])
    asked(capsys, ct, segments, "--name", "x", "--structures", "liver", "--new", "big_cyst=Renal cyst")
    assert [(label.id, label.name) for label in engine.asked["legend"]] == [("liver", "Liver"),
                                                                            ("big_cyst", "Renal cyst")]
    assert engine.asked["structures"] == ["liver", "big_cyst"]


@pytest.mark.parametrize("arguments, words", [
    (["--structures", "thumb"], "hold no structure 'thumb'; they hold: liver, kidney_left"),
    ([], "Say which structures to teach with --structures; the labels hold: liver, kidney_left"),
    (["--new", "Cyst"], "is not ID=NAME"),
    (["--new", "9:cyst=Cyst"], "value 9, which is not in the labels"),
    (["--new", "cyst=Cyst"], "structure 'cyst', which is not in the labels"),
    (["--structures", "liver", "--steps", "0"], "--steps must be 1 or more"),
    (["--structures", "liver", "--device", "gpu"], "no device 'gpu'"),
    (["--structures", "liver", "--encoder", "e.pt"], "not from both")])
def test_options_that_do_not_fit_are_said(capsys, engine, ct, arguments, words):
    assert words in asked(capsys, ct, drawn(ct), "--name", "x", *arguments, code=2) and not engine.asked


def _empty(path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)), path)


def _only_open(path):
    nibabel.save(nibabel.Nifti1Image(np.full((5, 5, 5), 255, np.uint8), np.eye(4)), path)


def _doubled_json(path):
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), path)
    path.with_name("labels.json").write_text('{"liver": 1, "spleen": 1}')


def _nonsense_json(path):
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), path)
    path.with_name("labels.json").write_text('{"1": ')


def _two_livers(path):
    nibabel.save(nibabel.Nifti1Image(np.arange(125).reshape(5, 5, 5).astype(np.uint8) % 3, np.eye(4)), path)
    path.with_name("labels.json").write_text('{"1": "Liver", "2": "liver"}')


def _an_image(path):
    nibabel.save(nibabel.Nifti1Image(np.full((5, 5, 5), -20, np.int16), np.eye(4)), path)


@pytest.mark.parametrize("write, words", [
    (_empty, "is empty: no voxel of it has a label"), (_only_open, "is empty"), (_an_image, "is not a label map"),
    (_two_livers, "holds more than one Liver"), (_doubled_json, "gives a value to two structures"),
    (_nonsense_json, "does not say what the labels mean"),
    (lambda path: None, "does not exist")])
def test_bad_labels_end_in_one_sentence(capsys, engine, ct, write, words):
    path = ct.with_name("l.nii")
    write(path)
    said = asked(capsys, ct, path, "--name", "x", "--structures", "liver", code=1)
    assert words in said and said.strip().count("\n") == 0 and not engine.asked


def test_swapped_sides_say_what_to_do(capsys, engine, ct):
    def refuse(record, progress, cancel):
        raise OptionError("Left kidney and right kidney look swapped.", code="swapped-sides")

    engine.play = refuse
    said = asked(capsys, ct, drawn(ct, (1,)), "--name", "x", "--structures", "liver", code=2)
    assert "look swapped. Run it again with --sides swap" in said


def test_scores_are_told_while_it_runs(capsys, engine, ct):
    def play(record, progress, cancel):
        record({"kind": "step", "step": 1, "loss": 0.7})
        record({"kind": "score", "step": 10, "mean": 0.512, "best": True})
        progress(0.5, "Step 11 of 20")
        record({"kind": "score", "step": 20, "mean": None, "best": False})

    engine.play = play
    said = asked(capsys, ct, drawn(ct, (1,)), "--name", "x", "--structures", "liver")
    assert "step 10: held-out Dice 0.512, the best so far" in said and "step 20" not in said
    assert " 50%  Step 11 of 20, held-out Dice 0.512" in said


def test_ctrl_c_once_finishes_and_twice_cancels(capsys, engine, ct):
    seen = []

    def once(record, progress, cancel):
        signal.raise_signal(signal.SIGINT)
        seen.append((cancel.finishing, cancel.cancelled))
        progress(0.5, "Step 11 of 20")
        progress(0.6, "Writing")

    def twice(record, progress, cancel):
        once(record, progress, cancel)
        signal.raise_signal(signal.SIGINT)
        seen.append((cancel.finishing, cancel.cancelled))
        raise Cancelled()

    engine.play = once
    arguments = (ct, drawn(ct, (1,)), "--name", "x", "--structures", "liver")
    said = asked(capsys, *arguments)
    assert said.count("press Ctrl-C again to stop and keep nothing") == 1 and "Kept as mine@1.0.0" in said
    engine.play = twice
    said = asked(capsys, *arguments, code=130)
    assert seen == [(True, False), (True, False), (True, True)] and "Kept" not in said


def test_a_request_to_terminate_cancels_at_once(capsys, engine, ct):
    def terminate(record, progress, cancel):
        signal.raise_signal(signal.SIGTERM)
        assert cancel.cancelled and not cancel.finishing
        raise Cancelled()

    engine.play = terminate
    asked(capsys, ct, drawn(ct, (1,)), "--name", "x", "--structures", "liver", code=130)


# ------------------------------------------------------------------------------------------------- the real thing


def test_a_real_model_learns_and_is_used(capsys, tmp_path, monkeypatch):
    write_real_model(tmp_path / "models" / "tiny@1.0.0")
    monkeypatch.setenv("HIENDSEG_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ct = write_ct(tmp_path / "ct.nii.gz")
    volume = read_volume(ct)
    core = np.zeros(volume.shape, np.uint8)
    core[8:22, 8:24, 6:22] = 3
    labels = tmp_path / "drawn.seg.nrrd"
    write_labels(volume.with_array(core), [Label(3, "Segment_1", "Core", (1, 2, 3))], labels)
    code, out, err = run(capsys, "adapt", ct, labels, "--name", "With a core", "--structures", "core", "--steps", 4,
                         "--model", "tiny", "--device", "cpu", "--threads", 1, "--in-process", "--keep-anyway")
    assert code == 0, err
    assert "Core (new)" in out and "Kept as with-a-core@1.0.0" in out and "held-out Dice" in err
    assert "Quick: about" in err and "of main memory" in err
    assert Registry().parent_of(Registry().get("with-a-core")).key == "tiny@1.0.0"
    code, out, err = run(capsys, "segment", ct, "-o", tmp_path / "out.seg.nrrd", "--model", "with-a-core", "--device",
                         "cpu", "--in-process")
    assert code == 0, err
    assert [label.id for label in read_labels(tmp_path / "out.seg.nrrd")[1]] == ["liver", "kidney_left", "core"]
    code, out, err = run(capsys, "adapt", ct, labels, "--name", "With a core", "--structures", "core", "--model",
                         "tiny", "--in-process")
    assert code == 2 and "'With a core 2' is free" in err


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_through_the_worker(tmp_path, presses):
    write_real_model(tmp_path / "models" / "tiny@1.0.0")
    before = files_in(tmp_path / "models")
    ct = write_ct(tmp_path / "ct.nii.gz")
    command = [sys.executable, "-m", "HiEndSegLib.cli", "adapt", str(ct), str(drawn(ct, (1,))), "--name", "Early",
               "--new", "1:core=Core", "--steps", "1000000", "--model", "tiny", "--device", "cpu", "--threads", "1",
               "--keep-anyway"]
    environment = {**os.environ, "HIENDSEG_MODELS": str(tmp_path / "models"), "PYTHONUNBUFFERED": "1",
                   "PYTHONPATH": str(Path(__file__).parents[1])}
    said, pressed = "", 0
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            said += line
            if "held-out Dice" in line and not pressed or "press Ctrl-C again" in line and pressed < presses:
                process.send_signal(signal.SIGINT)        # it learns; it finishes
                pressed += 1
            if pressed == presses:
                break
        out, rest = process.communicate(timeout=60)
    assert "Traceback" not in said + rest
    # The second one may come too late: what is on the disk by then is kept, and said.
    if presses == 1 or "Kept as" in out:
        assert process.returncode == 0 and "Kept as early@1.0.0" in out, said + rest
        assert any(name.startswith("early@1.0.0") for name in files_in(tmp_path / "models"))
    else:
        assert process.returncode == 130 and "Stopped" in rest, said + rest
        assert files_in(tmp_path / "models") == before
