"""`hiendseg segment` as a batch: names, resume, records, tables and refusals. The engine is a fake."""

from __future__ import annotations

import csv
import json
import os

import nibabel
import pytest
from cli_helpers import FakeEngine, files_in, run, write_ct
from tiny_models import write_bytes_model

from HiEndSegLib.cli import batch, segment
from HiEndSegLib.errors import OptionError


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """A fake engine behind the command, and a model that is only a card."""
    write_bytes_model(tmp_path / "models" / "tiny")
    monkeypatch.setenv("HIENDSEG_MODELS", str(tmp_path / "models"))
    fake = FakeEngine()
    monkeypatch.setattr(segment, "make_engine", lambda options: fake)
    return fake


def go(capsys, *arguments):
    return run(capsys, "segment", *arguments, "--model", "tiny")


def rows(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_case_to_one_file(engine, capsys, tmp_path):
    ct = write_ct(tmp_path / "ct.nii.gz")
    code, out, err = go(capsys, ct, "-o", tmp_path / "out" / "organs.nii.gz", "--device", "cpu")
    assert code == 0
    assert files_in(tmp_path / "out") == ["organs.hiendseg.json", "organs.nii.gz", "organs.volumes.csv"]
    assert engine.asked == [{"name": "ct", "model": str(tmp_path / "models" / "tiny"), "device": "cpu", "only": None,
                             "roi": None}]
    written = nibabel.load(tmp_path / "out" / "organs.nii.gz")
    assert (written.affine == nibabel.load(ct).affine).all() and set(written.get_fdata().ravel()) == {0, 1}
    [liver, kidney] = rows(tmp_path / "out" / "organs.volumes.csv")
    assert float(liver["volume_ml"]) == pytest.approx((written.get_fdata() == 1).sum() * 0.027, rel=1e-6)
    assert float(liver["mean_hu"]) == 40 and liver["model"] == "tiny@1.0.0" and liver["structure"] == "liver"
    assert kidney["voxels"] == "0" and kidney["mean_hu"] == ""
    assert "Liver" in out and liver["volume_ml"][:4] in out
    assert "about 0.2 GB of main memory" in err


def test_the_table_of_one_file_stays_when_the_file_is_finished_already(engine, capsys, tmp_path):
    ct = write_ct(tmp_path / "ct.nii.gz")
    go(capsys, ct, "-o", tmp_path / "a.nii.gz")
    go(capsys, ct, "-o", tmp_path / "b.nii.gz")
    before = (tmp_path / "a.volumes.csv").read_text()
    code, out, _ = go(capsys, ct, "-o", tmp_path / "a.nii.gz")
    assert code == 0 and "finished already" in out and len(engine.asked) == 2
    assert (tmp_path / "a.volumes.csv").read_text() == before and before.count("\n") == 3


def test_a_batch_goes_into_a_folder_with_one_table(engine, capsys, tmp_path):
    for name in ("a", "b"):
        write_ct(tmp_path / "in" / f"{name}.nii.gz")
    code, out, _ = go(capsys, tmp_path / "in", write_ct(tmp_path / "Größe 大.nii"), "-o", tmp_path / "out")
    assert code == 0
    assert [n for n in files_in(tmp_path / "out") if n.endswith(".seg.nrrd")] == \
        ["Größe 大.seg.nrrd", "a.seg.nrrd", "b.seg.nrrd"]
    assert [row["case"] for row in rows(tmp_path / "out" / "volumes.csv")] == ["Größe 大"] * 2 + ["a"] * 2 + ["b"] * 2
    assert "3 segmented, 0 finished before, 0 failed." in out


def test_finished_cases_are_skipped_and_said(engine, capsys, tmp_path):
    for name in ("a", "b"):
        write_ct(tmp_path / "in" / f"{name}.nii.gz")
    go(capsys, tmp_path / "in", "-o", tmp_path / "out")
    (tmp_path / "out" / "b.seg.nrrd").unlink()
    (tmp_path / "out" / "volumes.csv").unlink()
    before = (tmp_path / "out" / "a.seg.nrrd").stat().st_mtime_ns
    code, out, _ = go(capsys, tmp_path / "in", "-o", tmp_path / "out")
    assert code == 0 and "a: finished already" in out and "1 segmented, 1 finished before" in out
    assert [asked["name"] for asked in engine.asked] == ["a", "b", "b"]
    assert (tmp_path / "out" / "a.seg.nrrd").stat().st_mtime_ns == before
    assert {row["case"] for row in rows(tmp_path / "out" / "volumes.csv")} == {"a", "b"}
    code, out, _ = go(capsys, tmp_path / "in", "-o", tmp_path / "out")
    assert code == 0 and len(engine.asked) == 3 and "0 segmented, 2 finished before" in out


@pytest.mark.parametrize("change", ["options", "input", "model", "cut"])
def test_a_result_of_something_else_is_not_taken_for_finished(engine, capsys, tmp_path, change):
    ct = write_ct(tmp_path / "ct.nii.gz")
    go(capsys, ct, "-o", tmp_path / "out")
    more = []
    if change == "options":
        more = ["--only", "liver"]
    elif change == "input":
        write_ct(ct, hu=60)
    elif change == "model":
        write_bytes_model(tmp_path / "models" / "tiny", b"other weights")
    else:
        with open(tmp_path / "out" / "ct.seg.nrrd", "ab") as stream:
            stream.write(b"x")
    before = (tmp_path / "out" / "ct.seg.nrrd").read_bytes()
    code, _, err = go(capsys, ct, "-o", tmp_path / "out", *more)
    assert code == 1 and "exists already and was made from another input" in err
    assert (tmp_path / "out" / "ct.seg.nrrd").read_bytes() == before
    code, _, _ = go(capsys, ct, "-o", tmp_path / "out", "--overwrite", *more)
    assert code == 0 and len(engine.asked) == 2


def test_other_peoples_files_stay(engine, capsys, tmp_path):
    ct = write_ct(tmp_path / "ct.nii.gz")
    (tmp_path / "mine.nii.gz").write_bytes(b"precious")
    code, _, err = go(capsys, ct, "-o", tmp_path / "mine.nii.gz")
    assert code == 1 and "was not made by this program" in err and "--overwrite" in err
    assert (tmp_path / "mine.nii.gz").read_bytes() == b"precious" and not engine.asked
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "volumes.csv").write_text("a,b\n1,2\n")
    code, _, err = go(capsys, ct, "-o", tmp_path / "out")
    assert code == 2 and "is not a table of this program" in err
    assert files_in(tmp_path / "out") == ["volumes.csv"]


def test_the_input_is_never_the_output(engine, capsys, tmp_path):
    ct = write_ct(tmp_path / "ct.nii.gz")
    before = ct.read_bytes()
    code, _, err = go(capsys, ct, "-o", ct, "--overwrite")
    assert code == 1 and "is the input itself" in err and ct.read_bytes() == before


def test_a_batch_goes_on_after_a_crash_and_a_bug(engine, capsys, tmp_path):
    for name in ("a", "crash", "bug", "z"):
        write_ct(tmp_path / "in" / f"{name}.nii.gz")
    code, out, err = go(capsys, tmp_path / "in", tmp_path / "nowhere.nii", "-o", tmp_path / "out")
    assert code == 1
    assert [n for n in files_in(tmp_path / "out") if n.endswith(".seg.nrrd")] == ["a.seg.nrrd", "z.seg.nrrd"]
    assert "hiendseg: crash: The engine stopped while it worked" in err
    assert "hiendseg: bug: An unexpected error happened (ZeroDivisionError: division by zero)" in err
    assert "hiendseg: nowhere:" in err and "Traceback" not in err
    assert "2 segmented, 0 finished before, 3 failed." in out
    code, _, err = go(capsys, tmp_path / "in" / "bug.nii.gz", "-o", tmp_path / "out", "--debug")
    assert code == 1 and "Traceback" in err


def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_else(engine, capsys, tmp_path):
    for name in ("a", "b", "c"):
        write_ct(tmp_path / "in" / f"{name}.nii.gz")
    engine.interrupt_at = "b"
    code, _, err = go(capsys, tmp_path / "in", "-o", tmp_path / "out")
    assert code == 130 and "Stopped" in err
    assert files_in(tmp_path / "out") == ["a.hiendseg.json", "a.seg.nrrd", "volumes.csv"]
    engine.interrupt_at = None
    assert go(capsys, tmp_path / "in", "-o", tmp_path / "out")[0] == 0
    assert [asked["name"] for asked in engine.asked] == ["a", "b", "b", "c"]


def test_the_record_says_what_was_done(engine, capsys, tmp_path):
    ct = write_ct(tmp_path / "ct.nii.gz")
    go(capsys, ct, "-o", tmp_path / "out", "--only", "liver", "--roi", "-60,20,-50,50,0,70.5")
    assert engine.asked[0]["only"] == ["liver"] and engine.asked[0]["roi"] == ((-60, 20), (-50, 50), (0, 70.5))
    record = json.loads((tmp_path / "out" / "ct.hiendseg.json").read_text(encoding="utf-8"))
    assert record["request"]["model"] == "tiny@1.0.0" and len(record["request"]["sha256"]) == 64
    assert record["request"]["roi"] == [[-60, 20], [-50, 50], [0, 70.5]]
    assert record["input"]["name"] == "ct.nii.gz" and record["input"]["bytes"] == ct.stat().st_size
    assert str(tmp_path) not in json.dumps(record)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("options, words", [
    (["--only", "spleen"], "no structure 'spleen'; it knows: liver, kidney_left"),
    (["--only", ","], "no structure"),
    (["--roi", "1,2,3"], "is not six numbers"),
    (["--roi", "0,1,0,1,0,nan"], "is not six numbers"),
    (["--roi", "0,10,5,5,0,10"], "empty along A"),
    (["--device", "tpu"], "no device 'tpu'"),
])
def test_wrong_options_are_said_before_anything_starts(engine, capsys, tmp_path, options, words):
    code, out, err = go(capsys, write_ct(tmp_path / "ct.nii.gz"), "-o", tmp_path / "out", *options)
    assert code == 2 and words in err and err.count("\n") == 1 and not engine.asked
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_names_the_known_ones(engine, capsys, tmp_path):
    code, _, err = run(capsys, "segment", write_ct(tmp_path / "ct.nii"), "-o", tmp_path / "o", "--model", "nothing")
    assert code == 2 and "There is no model 'nothing'" in err and "tiny" in err


@pytest.mark.parametrize("name", ["out.png", "out.mhd", "out.dcm"])
def test_kinds_of_file_that_are_not_written(engine, capsys, tmp_path, name):
    code, _, err = go(capsys, write_ct(tmp_path / "ct.nii.gz"), "-o", tmp_path / name)
    assert code == 2 and "is not a label map this program writes" in err


def test_several_cases_do_not_go_into_one_file(engine, capsys, tmp_path):
    write_ct(tmp_path / "in" / "a.nii")
    write_ct(tmp_path / "in" / "b.nii")
    code, _, err = go(capsys, tmp_path / "in", "-o", tmp_path / "out.nii.gz")
    assert code == 2 and "2 cases and one output file" in err


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a place that not even root can write to")
@pytest.mark.parametrize("out", ["/proc/hiendseg", "/proc/hiendseg/organs.nii.gz"])
def test_an_output_that_cannot_be_written_is_said_first(engine, capsys, tmp_path, out):
    code, _, err = go(capsys, write_ct(tmp_path / "ct.nii.gz"), "-o", out)
    assert code == 2 and "Nothing can be written to the folder" in err and not engine.asked


def test_a_file_where_the_folder_should_be(engine, capsys, tmp_path):
    (tmp_path / "out").write_text("a file")
    code, _, err = go(capsys, write_ct(tmp_path / "ct.nii.gz"), "-o", tmp_path / "out")
    assert code == 2 and "is not a label map" in err and (tmp_path / "out").read_text() == "a file"


def test_a_broken_device_stops_the_batch_at_once(engine, capsys, tmp_path, monkeypatch):
    from HiEndSegLib.errors import DeviceError

    def refuse(*arguments, **options):
        raise DeviceError("There is no CUDA device; use --device cpu.")

    monkeypatch.setattr(engine, "segment", refuse)
    for name in ("a", "b", "c"):
        write_ct(tmp_path / "in" / f"{name}.nii.gz")
    code, out, err = go(capsys, tmp_path / "in", "-o", tmp_path / "out", "--device", "cuda")
    assert code == 1 and err.count("There is no CUDA device") == 1 and "b: Not tried" in out
    assert files_in(tmp_path / "out") == []


# ------------------------------------------------------------------------------------------------ names


class _Case:
    def __init__(self, path, name):
        self.path, self.name = path, name


def test_cases_of_the_same_name_get_their_folders_name(tmp_path):
    cases = [_Case(tmp_path / a / b / "image.nii", "image") for a in ("x", "y") for b in ("1", "2")]
    names = [target.name for target in batch.targets([*cases, _Case(tmp_path / "z.nii", "z")], str(tmp_path / "out"))]
    assert names == ["x-1-image", "x-2-image", "y-1-image", "y-2-image", "z"]


def test_names_that_differ_in_case_only_do_not_meet(tmp_path):
    cases = [_Case(tmp_path / "p" / "CT.nii", "CT"), _Case(tmp_path / "q" / "ct.nii", "ct")]
    assert [t.name for t in batch.targets(cases, str(tmp_path / "out"))] == ["p-CT", "q-ct"]


@pytest.mark.parametrize("out, is_file", [
    ("a.seg.nrrd", True), ("A.NII.GZ", True), ("a.b.mha", True), ("results", False), ("results.v2", False),
    ("results/", False), ("folder.nii/", False), (".nii", False)])
def test_what_is_a_file_and_what_a_folder(out, is_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert batch.is_file_target(out) == is_file


def test_what_looks_like_another_kind_of_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="end the name with one of .seg.nrrd"):
        batch.is_file_target("a.stl")
