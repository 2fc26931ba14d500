"""The whole command with a real (tiny) model: bad input, a worker, a full disk, Ctrl-C, the demonstration."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from cli_helpers import files_in, run, write_ct, write_real_model

from HiEndSegLib.geometry.writing import read_labels

COMMAND = [sys.executable, "-m", "HiEndSegLib.cli"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A user's model folder with one real model, "tiny": 3 mm; and "coarse": 12 mm."""
    folder = tmp_path_factory.mktemp("models")
    write_real_model(folder / "tiny")
    write_real_model(folder / "coarse", id="coarse", spacing=[12, 12, 12])
    return folder


@pytest.fixture(autouse=True)
def environment(models, monkeypatch):
    monkeypatch.setenv("HIENDSEG_MODELS", str(models))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def segment_here(capsys, *arguments):
    return run(capsys, "segment", *arguments, "--model", "tiny", "--device", "cpu", "--in-process")


# ------------------------------------------------------------------------------------------------ bad input


def _cut(path, ct):
    path.write_bytes(ct.read_bytes()[:-400])


def _empty(path, ct):
    path.write_bytes(b"")


def _text(path, ct):
    path.write_text("This is no image.")


def _header_only(path, ct):
    path.write_bytes(gzip.compress(gzip.decompress(ct.read_bytes())[:352]))


def _four_dimensions(path, ct):
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8, 3), np.int16), np.eye(4)), path)


def _colour(path, ct):
    sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), str(path))


def _nrrd(path, spacing):
    path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 4\n"
                     b"space directions: (" + spacing + b",0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\n"
                     b"endian: little\nencoding: raw\nspace origin: (0,0,0)\n\n" + bytes(128))


def _zero_spacing(path, ct):
    _nrrd(path, b"0")


def _no_finite_voxel(path, ct):
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), path)


def _air(path, ct):
    nibabel.save(nibabel.Nifti1Image(np.full((40, 40, 40), -1000, np.int16), np.eye(4)), path)


def _one_voxel_of_air(path, ct):
    nibabel.save(nibabel.Nifti1Image(np.full((1, 1, 1), -1000, np.int16), np.eye(4)), path)


def _negative_pixdim(path, ct):
    image = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[80:84] = np.float32(-1).tobytes()  # pixdim[1]
    raw[252:256] = bytes(4)
    path.write_bytes(raw)


BAD = {"cut.nii.gz": _cut, "empty.nii": _empty, "text.mha": _text, "header.nii.gz": _header_only,
       "four.nii": _four_dimensions, "colour.nrrd": _colour, "zero.nrrd": _zero_spacing, "nan.nii": _no_finite_voxel,
       "air.nii.gz": _air, "voxel.nii": _one_voxel_of_air, "negative.nii": _negative_pixdim}


def test_every_bad_input_ends_in_one_sentence_and_the_batch_goes_on(capsys, tmp_path):
    folder = tmp_path / "Bilder & Größen 肝"
    ct = write_ct(folder / "a good one 肝.nii.gz")
    for name, write in BAD.items():
        write(folder / name, ct)
    noisy = nibabel.load(ct).get_fdata().astype(np.float32)
    noisy[0, 0, :3] = [np.nan, np.inf, -np.inf]
    nibabel.save(nibabel.Nifti1Image(noisy, nibabel.load(ct).affine), folder / "z.nii")
    code, out, err = segment_here(capsys, folder, tmp_path / "nowhere.nii", "-o", tmp_path / "out")
    assert code == 1
    said = [line for line in err.splitlines() if line.startswith("hiendseg: ")]
    assert {line.split(": ")[1] for line in said} == {name.split(".")[0] for name in BAD} | {"nowhere"}
    for line in said:
        sentence = line.split(": ", 2)[2]
        assert 20 < len(sentence) < 320 and sentence.endswith(".") and "Error" not in sentence, sentence
    assert "Traceback" not in err and "unexpected" not in err
    assert files_in(tmp_path / "out") == ["a good one 肝.hiendseg.json", "a good one 肝.seg.nrrd", "volumes.csv",
                                          "z.hiendseg.json", "z.seg.nrrd"]
    assert f"2 segmented, 0 finished before, {len(BAD) + 1} failed." in out
    assert "3 voxels that were NaN or infinite were set to" in out
    assert "3 voxels that were NaN" in (tmp_path / "out" / "z.hiendseg.json").read_text(encoding="utf-8")
    labels, legend = read_labels(tmp_path / "out" / "a good one 肝.seg.nrrd")
    tissue = np.asarray(nibabel.load(ct).dataobj) > -500
    assert labels.shape == tissue.shape and np.allclose(labels.ijk_to_ras, nibabel.load(ct).affine, atol=1e-6)
    assert (labels.array == 1)[tissue].mean() > 0.95 and (labels.array == 1)[~tissue].mean() < 0.1
    assert [label.id for label in legend] == ["liver", "kidney_left"]


@pytest.mark.parametrize("damage, words", [
    ("weights", "do not match the checksum"), ("missing", "has no file weights.safetensors"),
    ("card", "not readable JSON"), ("outside", "points outside the model's own folder")])
def test_a_damaged_model_is_said_and_nothing_is_written(capsys, tmp_path, damage, words):
    model = write_real_model(tmp_path / "model")
    weights, card = model / "weights.safetensors", model / "card.json"
    if damage == "weights":
        raw = bytearray(weights.read_bytes())
        raw[-5] ^= 255
        weights.write_bytes(raw)
    elif damage == "missing":
        weights.unlink()
    elif damage == "card":
        card.write_text(card.read_text()[:-10])
    else:
        card.write_text(card.read_text().replace("weights.safetensors", "../weights.safetensors"))
    code, _, err = run(capsys, "segment", write_ct(tmp_path / "ct.nii.gz"), "-o", tmp_path / "out", "--model", model,
                       "--in-process")
    assert code == 2 and words in err and not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("name", ["ct.seg.nrrd", "ct.nii"])
def test_a_full_disk_leaves_nothing(tmp_path, name):
    write_ct(tmp_path / "ct.nii.gz", shape=(60, 60, 60), spacing=1.5)

    def small_files():
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))

    done = subprocess.run([*COMMAND, "segment", "ct.nii.gz", "-o", f"out/{name}", "--model", "tiny", "--in-process"],
                          cwd=tmp_path, preexec_fn=small_files, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert files_in(tmp_path / "out") == []


# ------------------------------------------------------------------------------------------------ the worker


def test_a_batch_through_the_worker(tmp_path):
    write_ct(tmp_path / "in" / "one.nii.gz")
    write_ct(tmp_path / "in" / "two.nii.gz", shape=(26, 24, 30))
    done = subprocess.run([*COMMAND, "segment", "in", "-o", "out", "--model", "tiny", "--threads", "1"], cwd=tmp_path,
                          capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "out") == ["one.hiendseg.json", "one.seg.nrrd", "two.hiendseg.json", "two.seg.nrrd",
                                          "volumes.csv"]
    assert "2 segmented" in done.stdout and "of main memory" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_ends_within_a_second_and_leaves_nothing(tmp_path):
    write_ct(tmp_path / "ct.nii.gz", shape=(160, 160, 160))  # some thousand tiles
    with subprocess.Popen([*COMMAND, "segment", "ct.nii.gz", "-o", "out", "--model", "tiny", "--threads", "1"],
                          cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if "main memory" in line:  # the worker plans: it is at work
                break
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        process.wait(20)
        seconds = time.monotonic() - pressed
    assert process.returncode == 130 and "Stopped" in rest and "Traceback" not in rest
    assert files_in(tmp_path / "out") == []
    assert seconds < 4  # one second on a machine that is not busy with the other tests


# ------------------------------------------------------------------------------------------------ the small commands


def test_the_demonstration_can_be_repeated(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    for _ in range(2):
        code, said, _ = run(capsys, "demo", "-o", out, "--model", "coarse", "--device", "cpu", "--in-process")
        assert code == 0
    assert files_in(out) == ["ct-abdomen-09.hiendseg.json", "ct-abdomen-09.png", "ct-abdomen-09.seg.nrrd",
                             "volumes.csv"]
    assert "Liver" in said and str(out / "ct-abdomen-09.png") in said
    assert (out / "ct-abdomen-09.png").read_bytes().startswith(b"\x89PNG")
    labels, _ = read_labels(out / "ct-abdomen-09.seg.nrrd")
    assert 20_000 < (labels.array == 1).sum() * labels.voxel_ml < 60_000  # a torso


def test_the_demonstration_leaves_other_files_alone(capsys, tmp_path):
    (tmp_path / "ct-abdomen-09.png").write_bytes(b"mine")
    code, _, err = run(capsys, "demo", "-o", tmp_path, "--model", "coarse", "--in-process")
    assert code == 2 and "was not made by this program" in err
    assert (tmp_path / "ct-abdomen-09.png").read_bytes() == b"mine" and files_in(tmp_path) == ["ct-abdomen-09.png"]


def test_info_describes_a_file_and_plans(capsys, tmp_path):
    code, out, _ = run(capsys, "info", write_ct(tmp_path / "ct.nii.gz"), "--model", "tiny")
    assert code == 0
    for words in ("30 x 32 x 28 (int16", "3 x 3 x 3 mm", "90 x 96 x 84 mm", "LPS", "-1000 to 40", "Hounsfield",
                  "Model tiny@1.0.0 on the CPU: ", "main memory"):
        assert words in out
    code, _, err = run(capsys, "info", tmp_path / "nothing.nii")
    assert code == 1 and "does not exist" in err


def test_info_names_tilt_and_handedness(capsys, tmp_path):
    angle = np.radians(10)
    matrix = np.diag([2.0, 2, 2, 1])
    matrix[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:, 2] *= -1
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), matrix), tmp_path / "oblique.nii")
    _, out, _ = run(capsys, "info", tmp_path / "oblique.nii", "--model", "tiny")
    assert "RAI, tilted by 10.0 degrees, left-handed" in out


def test_the_doctor_is_content_or_says_why_not(capsys, monkeypatch):
    from HiEndSegLib.engine import library

    code, out, _ = run(capsys, "doctor", "--in-process")
    assert code == 0 and "Everything is in order." in out and "PyTorch" in out and "tiny 1.0.0" in out
    version = library._version
    monkeypatch.setattr(library, "_version", lambda package: None if package == "torch" else version(package))
    code, out, err = run(capsys, "doctor", "--in-process")
    assert code == 1 and "PyTorch is not installed" in err and "Everything" not in out
    assert "tiny 1.0.0" in out


def test_models_from_the_command_line(capsys, tmp_path, monkeypatch, models):
    monkeypatch.setenv("HIENDSEG_MODELS", str(tmp_path / "mine"))
    code, out, _ = run(capsys, "models", "add", models / "coarse")
    assert code == 0 and "Added coarse@1.0.0" in out
    code, _, err = run(capsys, "models", "add", models / "coarse")
    assert code == 2 and "installed already" in err
    code, out, _ = run(capsys, "models", "list")
    assert code == 0 and "coarse@1.0.0" in out and "yours" in out
    code, out, _ = run(capsys, "models", "show", "coarse")
    assert code == 0 and "SCT 64033007 Kidney, Left" in out and "12 x 12 x 12 mm" in out
    assert run(capsys, "models", "verify", "coarse")[0] == 0
    raw = bytearray((tmp_path / "mine" / "coarse@1.0.0" / "weights.safetensors").read_bytes())
    raw[-1] ^= 255
    (tmp_path / "mine" / "coarse@1.0.0" / "weights.safetensors").write_bytes(raw)
    code, out, _ = run(capsys, "models", "verify")
    assert code == 1 and "do not match the checksum" in out
    code, out, _ = run(capsys, "models", "remove", "coarse")
    assert code == 0 and files_in(tmp_path / "mine") == []


def test_a_model_whose_network_cannot_be_built_is_not_added(capsys, tmp_path, monkeypatch):
    model = write_real_model(tmp_path / "model")
    card = model / "card.json"
    card.write_text(card.read_text().replace('"mask_dim"', '"mask_dims"'))
    monkeypatch.setenv("HIENDSEG_MODELS", str(tmp_path / "mine"))
    code, _, err = run(capsys, "models", "add", model)
    assert code == 2 and "no option 'mask_dims'" in err and files_in(tmp_path / "mine") == []


def test_the_command_line_opens_without_torch():
    code = ("import sys\n"
            "for name in ('torch', 'numpy', 'SimpleITK', 'nibabel', 'vtk', 'slicer'): sys.modules[name] = None\n"
            "from HiEndSegLib.cli import main\n"
            "assert main(['models', 'list']) == 0\nmain(['--help'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0 and "segment" in done.stdout, done.stderr
