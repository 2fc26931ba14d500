"""The whole work on one page with a real CT and the default model, step by step; arrays are looked at on the server."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from page_tools import LATER, LONG

from HiEndSegLib.presenter.adapt_inputs import SHIPPED_ENCODER

#: What is corrected, and the version that is made.
ORGAN, VERSION = "liver", "lesions-of-ours@1.0.0"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where downloads go, and what one step leaves for the next."""
    return {"folder": tmp_path_factory.mktemp("downloads")}


def card_in(path):
    """The card of an exported model."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(next(name for name in archive.namelist() if name.endswith("card.json"))))


def array(tab, id_):
    return np.load(io.BytesIO(tab.get(f"/probe/array/{id_}").body()))


def use_tool(tab, name, segment=ORGAN):
    """A tool of the section "Correct"."""
    tab.section("edit")
    tab.seen("edit-segment").wait_for()
    if tab.facts()["segment"] != segment:
        tab.page.locator(".v-select:has(#edit-segment)").click()
        tab.page.get_by_role("option", name="Liver", exact=True).click()
        tab.until(lambda: tab.facts()["segment"] == segment)
    tab.click(f"edit-{name}")
    tab.until(lambda: tab.facts()["tool"] == name)


def test_the_volume_is_there_and_nothing_that_is_slow_to_load(tab, case):
    facts = tab.facts()
    assert facts["slow"] == []
    assert facts["volumes"] == [case.name.split(".")[0]] and facts["torch"] is False
    assert all(facts["shape"]) and "voxels of 3 x 3 x 2.5 mm" in tab.text("seg-volume")


def test_segment(tab):
    tab.click("seg-run")
    tab.wait_state("s.seg_phase === 'running' && s.seg_fraction > 0", LATER)
    assert tab.text("seg-run").lower() == "cancel"
    tab.wait_state("s.seg_phase === 'done'", LONG)
    voxels = {id_: entry["voxels"] for id_, entry in tab.segments().items()}
    assert voxels[ORGAN] > 50_000 and voxels["aorta"] > 2_000 and len(voxels) == 19
    assert "structures" in tab.wait_state("s.seg_headline") and not tab.facts()["torch"]


def test_the_table_says_what_the_arrays_hold(tab):
    tab.only("results")
    tab.seen("res-table").wait_for()
    rows = [line.split("\t") for line in tab.text("res-table").splitlines()]
    assert rows[0] == ["Structure", "Volume (ml)", "Mean (HU)"]
    shown = {row[0]: float(row[1]) for row in rows[1:]}
    voxels = tab.segments()
    assert shown["Liver"] == pytest.approx(voxels["liver"]["voxels"] * 3 * 3 * 2.5 / 1000, abs=0.01)
    assert shown["Aorta"] == pytest.approx(voxels["aorta"]["voxels"] * 3 * 3 * 2.5 / 1000, abs=0.01)


def test_paint_with_the_mouse_and_undo(tab):
    use_tool(tab, "paint")
    before, all_before = array(tab, ORGAN), tab.segments()
    tab.drag("axial", (0.47, 0.75), (0.53, 0.75))           # behind the spine
    tab.until(lambda: tab.segments()[ORGAN]["hash"] != all_before[ORGAN]["hash"])
    painted = array(tab, ORGAN) & ~before
    slices = np.flatnonzero(painted.any((1, 2)))            # (K, J, I)
    assert painted.sum() > 20 and len(slices) == 1 and not (before & ~array(tab, ORGAN)).any()
    tab.click("edit-undo")
    tab.until(lambda: tab.segments() == all_before)
    tab.wait("document.getElementById('edit-undo').disabled")
    tab.click("edit-redo")
    tab.until(lambda: tab.segments()[ORGAN]["hash"] != all_before[ORGAN]["hash"])
    tab.page.keyboard.press("Control+z")
    tab.until(lambda: tab.segments() == all_before)


def test_erase_takes_away_only_there(tab):
    use_tool(tab, "erase")
    before = tab.segments()
    tab.drag("axial", (0.2, 0.45), (0.26, 0.52))            # the liver lies at the picture's left
    tab.until(lambda: tab.segments()[ORGAN]["voxels"] < before[ORGAN]["voxels"])
    after = tab.segments()
    assert {id_ for id_ in after if after[id_] != before[id_]} == {ORGAN}
    tab.click("edit-undo")
    tab.until(lambda: tab.segments() == before)


@pytest.mark.parametrize("one_slice", [True, False])
def test_cut_in_one_slice_or_through_all(tab, one_slice):
    use_tool(tab, "scissors")
    box = tab.seen("edit-one-slice")
    if box.is_checked() != one_slice:
        box.click()
    before, all_before = array(tab, ORGAN), tab.segments()
    tab.drag("axial", (0.02, 0.3), (0.3, 0.3), (0.3, 0.75), (0.02, 0.75), (0.02, 0.3))
    tab.until(lambda: tab.segments()[ORGAN]["hash"] != all_before[ORGAN]["hash"])
    gone = before & ~array(tab, ORGAN)
    slices = np.flatnonzero(gone.any((1, 2)))
    assert len(slices) == 1 if one_slice else len(slices) > 10
    assert {id_ for id_, entry in tab.segments().items() if entry != all_before[id_]} == {ORGAN}
    tab.page.keyboard.press("Control+z")                    # one step, however often the tool was chosen
    tab.until(lambda: tab.segments() == all_before)
    tab.page.keyboard.press("Escape")
    tab.until(lambda: tab.facts()["tool"] == "none")


def test_surfaces_on_request_follow_corrections(tab):
    tab.only("results", "edit")
    assert tab.facts()["surfaces"] == 0
    tab.click("res-3d")
    tab.until(lambda: tab.facts()["surfaces"] >= 10, 120)
    before, shown = tab.segments(), tab.facts()["surface_points"]
    use_tool(tab, "erase")
    tab.drag("axial", (0.2, 0.45), (0.26, 0.52))
    tab.until(lambda: tab.segments()[ORGAN]["voxels"] < before[ORGAN]["voxels"])
    tab.until(lambda: tab.facts()["surface_points"] != shown and tab.facts()["surfaces"] >= 10)
    tab.click("edit-undo")
    tab.until(lambda: tab.segments() == before)
    tab.page.keyboard.press("Escape")
    tab.click("res-3d")
    tab.until(lambda: tab.facts()["surfaces"] == 0)


def test_keys_for_slices_brush_and_help(tab):
    tab.page.mouse.move(640, 30)                            # over no view: the axial one moves
    before = tab.facts()["slices"]
    tab.page.keyboard.press("ArrowUp")
    tab.until(lambda: tab.facts()["slices"][0] == pytest.approx(before[0] + 2.5))
    assert tab.facts()["slices"][1:] == before[1:]
    tab.page.keyboard.press("PageDown")
    tab.until(lambda: tab.facts()["slices"][0] == pytest.approx(before[0] - 22.5))
    box = tab.view("coronal")
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    middle = tab.facts()["slices"]
    tab.page.keyboard.press("ArrowDown")
    tab.until(lambda: abs(tab.facts()["slices"][1] - middle[1]) == pytest.approx(3))
    assert tab.facts()["slices"][0] == middle[0]
    tab.page.keyboard.press("1")
    tab.until(lambda: tab.facts()["tool"] == "paint")
    size = tab.wait_state("s.edit_size")
    tab.page.keyboard.press("+")
    tab.wait_state(f"s.edit_size > {size}")
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("?")
    tab.seen("help").wait_for()
    assert "Ten slices" in tab.text("help")
    tab.click("help-close")
    tab.seen("help").wait_for(state="hidden")
    tab.page.mouse.move(640, 30)
    tab.page.keyboard.press("PageUp")
    tab.page.keyboard.press("ArrowDown")
    tab.until(lambda: tab.facts()["slices"][0] == pytest.approx(before[0]))


def test_a_step_sends_one_view(tab):
    """Not the others, in which nothing changes: with a segmentation that would take twice as long."""
    pictures = """() => ['axial', 'coronal', 'sagittal', '3d'].map(name =>
        document.getElementById('view-' + name).parentElement.querySelector('img').src)"""
    tab.page.mouse.move(640, 30)
    for key in ("ArrowUp", "ArrowDown"):
        tab.steady(lambda: tab.page.evaluate(pictures))
        before = tab.page.evaluate(pictures)
        tab.page.keyboard.press(key)
        tab.until(lambda: tab.page.evaluate(pictures)[0] != before[0])
        tab.steady(lambda: tab.page.evaluate(pictures))
        assert tab.page.evaluate(pictures)[1:] == before[1:]


def test_the_mouse_does_what_the_help_says(tab):
    mouse, box = tab.page.mouse, tab.view("axial")
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def drag(button):
        mouse.move(*middle)
        mouse.down(button=button)
        mouse.move(middle[0] + 30, middle[1] + 50, steps=6)
        mouse.up(button=button)
        tab.steady(lambda: [tab.facts()[name] for name in ("window", "fields", "origins")])

    before = tab.facts()
    assert before["tool"] == "none" and before["window"] == [400, 40]
    mouse.move(*middle)
    mouse.wheel(0, -120)
    tab.until(lambda: tab.facts()["slices"][0] == pytest.approx(before["slices"][0] + 2.5))
    mouse.wheel(0, 120)
    tab.until(lambda: tab.facts()["slices"][0] == pytest.approx(before["slices"][0]))
    drag("left")
    tab.until(lambda: tab.facts()["window"] != before["window"])
    assert tab.facts()["fields"] == before["fields"]
    tab.page.keyboard.press("w")
    tab.until(lambda: tab.facts()["window"] == [400, 40])
    tab.page.keyboard.press("w")
    tab.until(lambda: tab.facts()["window"] == [160, 90])
    drag("right")
    tab.until(lambda: tab.facts()["fields"][0] != before["fields"][0])
    drag("middle")
    tab.until(lambda: tab.facts()["origins"][0] != before["origins"][0])
    tab.page.keyboard.press("f")
    tab.until(lambda: tab.facts()["fields"] == before["fields"])
    assert tab.facts()["origins"][0] == [0, 0, 0]           # as it was when the page came
    tab.section("open")
    tab.page.locator(".v-select:has([id=window])").click()
    tab.page.get_by_role("option", name="Soft tissue", exact=True).click()
    tab.until(lambda: tab.facts()["window"] == [400, 40])


def test_adapt_to_what_was_drawn(tab, kept):
    """A correction of the liver, and a structure of one's own."""
    use_tool(tab, "scissors")
    if tab.seen("edit-one-slice").is_checked():
        tab.click("edit-one-slice")
    before = tab.segments()
    tab.drag("axial", (0.02, 0.2), (0.25, 0.2), (0.25, 0.75), (0.02, 0.75), (0.02, 0.2))
    tab.until(lambda: tab.segments()[ORGAN]["voxels"] < 0.9 * before[ORGAN]["voxels"])
    tab.seen("edit-name").fill("Lesion")
    tab.click("edit-add")
    lesion = tab.until(lambda: tab.facts()["segment"] not in (ORGAN, "") and tab.facts()["segment"])
    use_tool(tab, "paint", lesion)
    tab.click("edit-sphere")
    for _ in range(6):
        tab.page.keyboard.press("+")
    tab.wait_state("s.edit_size > 30")
    tab.drag("axial", (0.25, 0.4))
    tab.until(lambda: tab.segments()[lesion]["voxels"] > 500)
    assert len(np.flatnonzero(array(tab, lesion).any((1, 2)))) > 8      # a ball reaches into the neighboring slices
    tab.page.keyboard.press("Escape")
    kept["corrected"] = tab.segments()
    tab.only("adapt")
    tab.click("ada-compare", LATER)
    tab.wait_state("s.ada_phase === 'ready'", LONG)
    tab.wait(f"document.getElementById('ada-teach-{ORGAN}').checked")
    assert tab.seen("ada-teach-aorta").is_checked() is False
    new = tab.wait_state("s.ada_rows.find(r => r.is_new).id")
    if not tab.seen(f"ada-teach-{new}").is_checked():
        tab.click(f"ada-teach-{new}")
    tab.seen("ada-name").fill("Lesions of ours")
    tab.click("ada-run")
    tab.wait_state("s.ada_phase === 'running'", LONG)
    tab.wait_state("s.ada_phase === 'done'", LONG)
    assert tab.seen("ada-curve").locator("polyline").count() == 2
    table = tab.text("ada-table")
    assert "Liver (taught)" in table and "Lesion (taught)" in table and "Aorta" in table
    if tab.wait_state("s.ada_result_key || s.ada_can_keep") is True:
        tab.click("ada-keep")                               # a few steps need not make it better
    assert tab.wait_state("s.ada_result_key", LATER) == VERSION
    assert tab.segments() == kept["corrected"]              # adapting changes no drawing


def test_the_version_is_among_the_models_and_goes_out_and_in(tab, kept, models):
    assert [path.parent.name for path in models.glob("*/card.json")] != []
    path = tab.download("ada-export", kept["folder"])
    with zipfile.ZipFile(path) as archive:
        names = [name.rsplit("/", 1)[-1] for name in archive.namelist()]
    assert "card.json" in names and "teaching.npz" not in names
    tab.only("models")
    whole = tab.download(f"models-whole-{VERSION}", kept["folder"])
    assert card_in(path)["adaptation"]["name"] == "Lesions of ours" and not card_in(whole).get("adaptation")
    assert whole.stat().st_size > 3 * path.stat().st_size and "-whole" in whole.name
    tab.seen(f"models-verify-{VERSION}").click()
    tab.wait_state("s.mod_headline.includes('sound')", LATER)
    tab.seen(f"models-delete-{VERSION}").click()
    tab.click("models-answer-delete")
    tab.wait_state(f"!s.mod_rows.some(r => r.id === '{VERSION}')", LATER)
    tab.seen("models-file").set_input_files(path)
    tab.wait_state(f"s.mod_rows.some(r => r.id === '{VERSION}') && s.mod_headline.includes('was added')", LATER)
    assert tab.wait_state(f"s.seg_models.some(r => r.id === '{VERSION}')")


def test_a_new_model_from_an_encoder_alone(tab, kept, models):
    """The one that ships is offered; a file is sent, looked at, and refused where it holds something else."""
    tab.only("adapt")
    tab.page.locator(".v-select:has([id=ada-model])").click()
    tab.page.get_by_role("option", name="A new model, from an encoder alone").click()
    tab.wait_state("s.ada_from_encoder && s.ada_encoder_sentence.startsWith('torso-ct-tiny-encoder: a new model')")
    for name, content, words in (("notes.pth", b"no weights", "notes.pth"), ("notes.txt", b"x", "one file with weights")):
        path = kept["folder"] / name
        path.write_bytes(content)
        tab.seen("ada-encoder-file").set_input_files(path)
        tab.wait_state(f"s.enc_percent < 0 && s.enc_error.includes('{words}')", LATER)
        assert "torso-ct-tiny-encoder" in tab.text("ada-encoder")
    tab.seen("ada-encoder-file").set_input_files(SHIPPED_ENCODER / "encoder.safetensors")
    tab.wait_state("s.ada_encoder_sentence.startsWith('encoder.safetensors: a new model') && !s.enc_error", LATER)
    tab.page.locator(".v-select:has([id=ada-model])").click()
    tab.page.get_by_role("option", name="Torso CT, 19 structures").first.click()
    tab.wait_state("!s.ada_from_encoder && s.ada_model_id")


def test_attention_by_a_click_in_a_slice(tab):
    tab.only("attention")
    tab.click("att-show")
    tab.seen("att-legend").wait_for(timeout=LONG)
    facts = tab.facts()
    first, words = facts["point"], tab.text("att-headline")
    assert all(facts["foreground"]) and "abdomen" not in str(facts["foreground"])
    tab.click("att-place")
    tab.wait_state("s.att_placing")
    tab.drag("axial", (0.2, 0.5))
    tab.until(lambda: tab.facts()["point"] not in (None, first))
    moved = tab.facts()["point"]
    assert np.linalg.norm(np.subtract(moved, first)) > 20
    tab.wait_state("!s.att_working && !s.att_placing", LONG)
    tab.until(lambda: tab.text("att-headline") != words, 60)


def test_blocks_are_compared_and_the_model_says_how_sure_it_is(tab):
    tab.only("attention")
    assert tab.facts()["foreground"][0]                     # the map of the step before
    tab.page.locator(".v-select:has([id=att-compare])").click()
    tab.page.get_by_role("option", name="With another block", exact=True).click()
    tab.wait_state("s.att_compare_sentence !== '' && s.att_compare_picture !== ''", LONG)
    tab.page.locator(".v-select:has([id=att-compare])").click()
    tab.page.get_by_role("option", name="With nothing", exact=True).click()
    tab.click("att-heads")
    tab.seen("att-heads-picture").wait_for(timeout=LONG)
    tab.click("att-inspect")
    tab.seen("att-queries").wait_for(timeout=LONG)
    assert "Liver" in tab.text("att-queries") and tab.seen("att-inspect-picture").is_visible()
    tab.click("att-uncertainty")
    tab.seen("att-confidence").wait_for(timeout=LONG)
    assert "Liver" in tab.text("att-confidence")
    tab.click("att-uncertainty")
    tab.wait_state("!s.att_uncertainty_shown")


def test_a_saved_scene_holds_no_map_and_the_map_stays(tab, kept):
    tab.only("results")
    before = tab.facts()
    path = tab.download("download-mrb", kept["folder"])
    with zipfile.ZipFile(path) as archive:
        scene = next(archive.read(name).decode() for name in archive.namelist() if name.endswith(".mrml"))
        names = " ".join(archive.namelist())
    assert ".seg.nrrd" in names and "Attention" not in scene and "HiEndSeg.HeatMap" not in scene
    assert before["foreground"][0] not in scene
    after = tab.facts()
    assert after["foreground"] == before["foreground"] and after["nodes"] == before["nodes"]
    tab.only("attention")
    tab.click("att-show")
    tab.until(lambda: tab.facts()["foreground"] == [None] * 3)


def test_what_is_downloaded_is_what_is_shown(tab, kept):
    from HiEndSegLib.geometry.writing import read_labels

    tab.only("results")
    shown = array(tab, ORGAN).transpose(2, 1, 0)
    for kind in ("seg.nrrd", "nii.gz"):
        path = tab.download(f"download-{kind}", kept["folder"])
        assert path.name.endswith(f".{kind}")
        labels, legend = read_labels(path)
        value = next(label.value for label in legend if label.id == ORGAN)
        got = labels.array == value
        if got.shape != shown.shape:                        # Slicer writes no more than the box that holds segments
            assert got.sum() == shown.sum()
        else:
            assert np.array_equal(got, shown)
    assert tab.seen("download-dcm").count() == 0            # this volume did not come as DICOM


def test_a_reload_finds_everything_as_it_was(tab):
    before, table = tab.segments(), tab.text("res-table")
    facts = tab.facts()
    tab.page.reload()
    tab.first_picture()
    tab.only("results")
    tab.seen("res-table").wait_for()
    assert tab.text("res-table") == table and tab.segments() == before
    again = tab.facts()
    assert again["pid"] == facts["pid"] and again["slices"] == pytest.approx(facts["slices"])


def test_nothing_complained_and_nobody_else_was_asked(tab):
    assert tab.complaints == []
    assert not tab.facts()["torch"]
