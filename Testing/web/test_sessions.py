"""More than one page, files that are sent, a worker that dies, and pages that go away."""

from __future__ import annotations

import os
import signal
import time
import zipfile

import numpy as np
import psutil
import pytest
from page_tools import LATER, LONG, SOON

from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.geometry.writing import write_volume


def cube(edge=40):
    """A warm ball in air, 4 mm."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij"))
    array = np.where((grid ** 2).sum(0) < 0.8, 40, -1000).astype(np.int16)
    return Volume(array, np.diag([4.0, 4.0, 4.0, 1.0]), "cube", {"modality": "CT"})


def send(tab, path):
    tab.section("open")
    tab.seen("open-file").set_input_files(path)


def left(tab):
    """What lies in the session's folder but for an encoder, which is kept for as long as it may be chosen."""
    return [name for name in tab.facts()["folder"] if not name.startswith("encoder-")]


def opened(tab, name):
    tab.until(lambda: name in tab.facts()["volumes"] and not left(tab), LATER / 1000)
    assert tab.wait_state("s.upload_error === '' && s.upload_percent === -1 && !s.opening")


def write_dicom(folder, volume):
    from test_geometry_dicom import write_slice
    from test_geometry_dicom_seg import SCANNER

    folder.mkdir()
    for k in range(volume.shape[2]):
        position = (volume.ijk_to_ras @ [0, 0, k, 1])[:3] * [-1, -1, 1]
        write_slice(folder / f"{k:03d}", position, (-1, 0, 0, 0, -1, 0), pixels=volume.array[:, :, k].T, instance=k + 1,
                    thickness=4, pixel=(4.0, 4.0), rows=volume.shape[1], columns=volume.shape[0], **SCANNER)
    return folder


def test_two_pages_cannot_see_each_other(tab, second, chrome):
    mine, theirs = tab.facts(), second.facts()
    assert mine["pid"] != theirs["pid"] and theirs["volumes"] == [] and mine["volumes"] != []
    stranger = chrome.new_context()
    try:
        for address in (tab.page.url, tab.page.url.replace("index.html", "download/mrb"),
                        tab.page.url.replace("index.html", "probe/facts")):
            assert stranger.request.get(address).status == 403
    finally:
        stranger.close()


@pytest.mark.parametrize("name, content", [
    ("scan.nii.gz", b"\x1f\x8b\x08 this is no image"), ("scan.nii", b"hello" * 200), ("scan.nrrd", b"NRRD0004\n\nx"),
    ("scan.zip", b"PK\x05\x06 no"), ("scan.exe", b"MZ"),
    ("scan2.nrrd", b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: /etc/passwd\n\n")])
def test_garbage_is_refused_in_a_sentence(tab, tmp_path, name, content):
    before = tab.facts()
    (tmp_path / name).write_bytes(content)
    tab.section("open")
    tab.page.evaluate("window.trame.state.set('upload_error', '')")
    send(tab, tmp_path / name)
    tab.seen("upload-error").wait_for()
    sentence = tab.text("upload-error")
    assert sentence.endswith(".") and len(sentence) > 20 and "Traceback" not in sentence
    after = tab.facts()
    assert after["volumes"] == before["volumes"] and after["nodes"] == before["nodes"] and not left(tab)


def test_a_zip_without_dicom_is_refused_by_the_name_it_has_here(tab, tmp_path):
    before = tab.facts()
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for name in ("../../evil.py", "/etc/evil", "C:\\evil.bat"):
            archive.writestr(name, "print('here')")
    tab.page.evaluate("window.trame.state.set('upload_error', '')")
    send(tab, tmp_path / "scan.zip")
    tab.seen("upload-error").wait_for()
    assert tab.text("upload-error").startswith("The zip holds no DICOM images")
    after = tab.facts()
    assert after["volumes"] == before["volumes"] and not left(tab)


def test_an_image_with_holes_is_opened_and_says_so(second, tmp_path):
    array = cube().array.astype(np.float32)
    array[:3] = np.nan
    write_volume(Volume(array, np.diag([4.0, 4.0, 4.0, 1.0]), "holes", {}), tmp_path / "holes.nii.gz")
    send(second, tmp_path / "holes.nii.gz")
    opened(second, "holes")
    assert "4800 voxels that were NaN" in second.text("message")
    second.click("volume-remove")
    second.until(lambda: second.facts()["volumes"] == [])


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_an_image_is_opened_and_nothing_stays_on_the_disk(second, tmp_path, ending):
    volume = cube()
    write_volume(volume, tmp_path / f"my scan.{ending}")
    send(second, tmp_path / f"my scan.{ending}")
    opened(second, "my scan")
    facts = second.facts()
    assert facts["shape"] == [40, 40, 40] and facts["nodes"]["vtkMRMLScalarVolumeNode"] == 1
    second.click("volume-remove")
    second.until(lambda: second.facts()["volumes"] == [])
    nodes = second.facts()["nodes"]
    assert nodes["vtkMRMLScalarVolumeNode"] == nodes["vtkMRMLScalarVolumeDisplayNode"] == 0
    assert second.complaints == []


def test_dicom_goes_in_and_dicom_comes_out(second, tmp_path):
    """A zip of a series, segmented in a region where the model sees something or not; the file lies on the series."""
    import pydicom

    pytest.importorskip("highdicom", reason="highdicom is not installed")
    write_dicom(tmp_path / "series", cube())
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for path in sorted((tmp_path / "series").iterdir()):
            archive.write(path, f"../../{path.name}.py")
    send(second, tmp_path / "series.zip")
    opened(second, "series")
    assert second.facts()["shape"] == [40, 40, 40]
    second.wait_state("s.seg_button_enabled", LATER)
    second.click("seg-run")
    second.wait_state("s.seg_phase === 'done'", LONG)
    found = {id_: entry["voxels"] for id_, entry in second.segments().items() if entry["voxels"]}
    assert found                                            # a warm ball has fat or bowel for it, whatever it is
    second.only("results")
    path = second.download("download-dcm", tmp_path)
    data = pydicom.dcmread(path)
    assert data.Modality == "SEG" and data.PatientID == "7" and len(data.SegmentSequence) == len(found)
    assert sum(int(frame.sum()) for frame in data.pixel_array) == sum(found.values())
    assert second.complaints == []


def test_a_worker_that_is_killed_costs_one_run(tab):
    tab.only("segment")
    before, facts = tab.segments(), tab.facts()
    tab.click("seg-run")
    if before:
        tab.seen("seg-question").wait_for()
        tab.click("seg-answer-new")
    tab.wait_state("s.seg_phase === 'running'", LATER)
    os.kill(facts["worker"], signal.SIGKILL)
    tab.wait_state("s.seg_phase === 'failed'", LATER)
    assert tab.wait_state("s.seg_headline.includes('not segmented') && s.seg_detail").endswith(".")
    assert tab.segments() == before
    tab.click("seg-run")
    if before:
        tab.seen("seg-question").wait_for()
        tab.click("seg-answer-replace")
    tab.wait_state("s.seg_phase === 'done'", LONG)
    assert tab.segments()["liver"]["voxels"] > 50_000
    assert tab.facts()["nodes"] == facts["nodes"] or not before      # runs leave nothing behind
    assert tab.complaints == []


def test_cancel_changes_nothing_even_if_the_worker_hangs(tab):
    before = tab.segments()
    os.kill(tab.facts()["worker"], signal.SIGSTOP)
    tab.click("seg-run")
    if before:
        tab.seen("seg-question").wait_for()
        tab.click("seg-answer-replace")
    tab.wait_state("s.seg_busy && s.seg_button_text === 'Cancel'", LATER)
    tab.click("seg-run")
    tab.wait_state("s.seg_phase === 'idle' && s.seg_headline.includes('nothing was changed')", SOON)
    assert tab.segments() == before


def test_a_page_that_is_closed_frees_its_process_and_folder(chrome, site, tab):
    from page_tools import Tab

    third = Tab(chrome.context, site.home)
    process = psutil.Process(third.facts()["pid"])
    folders = {path.name for path in site.folder.iterdir() if path.name.startswith("hiendseg-")}
    third.close()
    gone, _ = psutil.wait_procs([process], 30)
    assert gone
    deadline = time.monotonic() + 10
    while len([path for path in site.folder.iterdir() if path.name in folders]) == len(folders):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert tab.facts()["pid"]                               # and nobody else's


def test_a_page_that_is_closed_while_it_computes_stops_computing(chrome, site, tmp_path):
    from page_tools import Tab

    write_volume(cube(64), tmp_path / "ball.nii.gz")
    fifth = Tab(chrome.context, site.home)
    send(fifth, tmp_path / "ball.nii.gz")
    opened(fifth, "ball")
    facts = fifth.facts()
    session = psutil.Process(facts["pid"])
    fifth.wait_state("s.seg_button_enabled", LATER)
    fifth.click("seg-run")
    fifth.wait_state("s.seg_busy", LATER)
    worker = psutil.Process(fifth.facts()["worker"])
    fifth.close()
    gone, left = psutil.wait_procs([session, worker], 60)
    assert left == []


def test_a_page_whose_process_died_says_so_and_leads_to_a_new_one(chrome, site):
    from page_tools import Tab

    fourth = Tab(chrome.context, site.home)
    os.kill(fourth.facts()["pid"], signal.SIGKILL)
    fourth.seen("lost").wait_for(timeout=SOON)
    assert "is gone" in fourth.text("lost")
    with fourth.page.expect_navigation(timeout=LATER):
        fourth.page.get_by_role("link", name="Open a new page").click()
    fourth.page.wait_for_url("**/index.html", timeout=LATER)
    fourth.wait("document.title === 'HiEndSeg' && window.trame", LATER)
    assert fourth.facts()["volumes"] == []
    fourth.close()
