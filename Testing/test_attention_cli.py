"""`hiendseg attention`: a real small model, real files, and every way to ask for something that is not there."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from cli_helpers import files_in, run, write_ct
from test_attention_engine import write

from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.reading import read_volume
from HiEndSegLib.geometry.writing import write_labels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def ct(tmp_path):
    return write_ct(tmp_path / "in" / "ct.nii.gz")


def ask(capsys, ct, out, model, *more):
    return run(capsys, "attention", ct, "-o", out, "--model", model, "--in-process", "--device", "cpu", *more)


def test_one_map_on_the_lattice_of_the_image(ct, model, tmp_path, capsys):
    out = tmp_path / "heat.nrrd"
    code, text, problems = ask(capsys, ct, out, model, "--at", "-40,-48,42", "--layers", "-1")
    assert code == 0, problems
    heat, image = read_volume(out), read_volume(ct)
    assert heat.same_lattice(image, 1e-4) and heat.array.dtype == np.float32 and heat.array.max() > 0
    assert "Brighter means" in text and "Block 3 of 0 to 3, mean over 2 heads" in text and str(out) in text
    code, _, problems = ask(capsys, ct, out, model, "--at", "-40,-48,42", "--layers", "3")
    assert code == 2 and "is there already" in problems
    code, _, _ = ask(capsys, ct, out, model, "--at", "-40,-48,42", "--layers", "3", "--overwrite", "--unit", "share")
    assert code == 0
    np.testing.assert_allclose(read_volume(out).array * 8, heat.array, rtol=1e-4, atol=1e-6)     # 2^3 tokens
    code, printed, problems = ask(capsys, ct, out, model, "--at", "L 40, P 48, S 42 mm", "--layers", "3", "--overwrite")
    assert code == 0 and printed == text, (printed, problems)


def test_heads_layers_and_the_figure(ct, model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    out.mkdir()
    code, text, problems = ask(capsys, ct, out / "a.nii.gz", model, "--at", "-40,-48,42", "--layers", "1,3", "--heads",
                               "--figure", out / "a.png")
    assert code == 0, problems
    assert "as …-head00.nii.gz" in text
    names = [f"a-block{layer:02d}{head}.nii.gz" for layer in (1, 3) for head in ("", "-head00", "-head01")]
    assert files_in(out) == sorted([*names, "a.png"]) and "2 single heads" in text
    mean = nibabel.load(out / names[0]).get_fdata()
    heads = [nibabel.load(out / name).get_fdata() for name in names[1:3]]
    np.testing.assert_allclose(mean, np.mean(heads, axis=0), atol=1e-6)


def test_a_drawn_structure_and_an_object_query(ct, model, tmp_path, capsys):
    image = read_volume(ct)
    drawing = np.zeros(image.shape, np.uint8)
    drawing[10:16, 12:18, 8:15] = 2
    labels = tmp_path / "mine.seg.nrrd"
    write_labels(image.with_array(drawing), [Label(2, "lesion", "My lesion", (200, 0, 0))], labels)
    for structure in ("lesion", "My lesion", "2"):
        code, text, problems = ask(capsys, ct, tmp_path / "s.nrrd", model, "--labels", labels, "--structure", structure,
                                   "--layers", "2", "--overwrite")
        assert code == 0, problems
    code, text, problems = ask(capsys, ct, tmp_path / "q.nrrd", model, "--kind", "head", "--query", "1")
    assert code == 0 and "object query 1" in text, problems
    assert [p.name for p in sorted(tmp_path.glob("q-*"))] == [f"q-layer{n:02d}.nrrd" for n in range(4)]


@pytest.mark.parametrize("more, words", [
    ((), "Say where to look from"),
    (("--at", "1,2"), "not three numbers"), (("--at", "1,2,x"), "not three numbers"), (("--at", "1,2,nan"), "numbers"),
    (("--at", "9999,0,0"), "lies outside the volume"),
    (("--at", "-40,-48,42", "--layers", "4"), "no block 4; this model has the blocks 0 to 3"),
    (("--at", "-40,-48,42", "--layers", "two"), "not whole numbers"),
    (("--at", "-40,-48,42", "--heads", "7"), "no head 7"), (("--at", "-40,-48,42", "--heads", "some"), "no head 'some'"),
    (("--at", "-40,-48,42", "--query", "1"), "add --kind head"),
    (("--at", "-40,-48,42", "--structure", "liver"), "add --kind head"),
    (("--kind", "head", "--query", "99"), "no object query 99"),
    (("--kind", "head", "--structure", "spleen"), "no structure 'spleen'"),
    (("--at", "-40,-48,42", "--device", "abacus"), "no device 'abacus'"),
    (("--at", "-40,-48,42", "--figure", "picture.jpg"), "call it .png"),
    (("--at", "-40,-48,42", "--figure", "nowhere/picture.png"), "The folder nowhere does not exist"),
    (("--at", "-40,-48,42", "--plane", "sagittal"), "add --figure"),
    (("--kind", "head", "--query", "1", "--structure", "liver"), "Choose one object query"),
    (("--at", "R 40, S 48, S 42"), "not three numbers"),
])
def test_what_cannot_be_asked(ct, model, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "heat.nrrd"
    code, _, problems = ask(capsys, ct, out, model, *more)
    assert code in (1, 2) and words in problems and "Traceback" not in problems
    assert files_in(tmp_path) == ["in/ct.nii.gz"]


def test_names_that_cannot_be_written_and_labels_that_lack_the_structure(ct, model, tmp_path, capsys):
    code, _, problems = ask(capsys, ct, tmp_path / "heat.jpg", model, "--at", "-40,-48,42")
    assert code == 2 and "heat.jpg has no extension of one" in problems
    for name in ("heat.png", "heat.seg.nrrd"):
        code, _, problems = ask(capsys, ct, tmp_path / name, model, "--at", "-40,-48,42")
        assert code == 2 and "A map is a volume" in problems and ".seg.nrrd" not in problems.split("use one of")[1]
    gone = tmp_path / "no.nrrd"
    code, _, problems = ask(capsys, ct, tmp_path / "h.nrrd", model, "--labels", gone, "--structure", "a")
    assert code == 1 and "no.nrrd" in problems
    image = read_volume(ct)
    write_labels(image.with_array(np.ones(image.shape, np.uint8)), [Label(1, "all", "All", (1, 2, 3))],
                 tmp_path / "l.seg.nrrd")
    code, _, problems = ask(capsys, ct, tmp_path / "h.nrrd", model, "--labels", tmp_path / "l.seg.nrrd", "--structure",
                            "liver")
    assert code == 2 and "no structure 'liver'; it holds all" in problems
    code, _, problems = ask(capsys, ct, tmp_path / "h.nrrd", model, "--labels", tmp_path / "l.seg.nrrd")
    assert code == 2 and "--structure ID" in problems and not (tmp_path / "h.nrrd").exists()


def test_the_volume_may_come_after_heads_and_names_from_the_json_beside_the_labels(ct, model, tmp_path, capsys):
    code, text, problems = run(capsys, "attention", "-o", tmp_path / "h.nrrd", "--model", model, "--in-process",
                               "--device", "cpu", "--at", "-40,-48,42", "--layers", "2", "--heads", ct)
    assert code == 0 and "2 single heads" in text, problems
    code, _, problems = run(capsys, "attention", "-o", tmp_path / "x.nrrd", "--model", model, "--at", "0,0,0", "--heads")
    assert code == 2 and "Say which volume" in problems
    image = read_volume(ct)
    drawing = np.zeros(image.shape, np.uint8)
    drawing[10:16, 12:18, 8:15] = 5
    nibabel.save(nibabel.Nifti1Image(drawing, image.ijk_to_ras), tmp_path / "labels.nii.gz")
    (tmp_path / "labels.json").write_text('{"5": "Liver"}')
    code, text, problems = ask(capsys, ct, tmp_path / "s.nrrd", model, "--labels", tmp_path / "labels.nii.gz",
                               "--structure", "liver", "--layers", "2")
    assert code == 0 and "the structure's cubes" in text, problems
