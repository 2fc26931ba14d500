"""The terminology that ships, as Slicer's own logic reads it, against the structures of the default model."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from bridge_scene import slicer, vtk

from HiEndSegLib.bridge.scene import load_terminology
from HiEndSegLib.bridge.segmentations import describe_segment
from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.labels import Label
from training.structures import card_labels

PATH = Path(__file__).parents[1] / "Resources" / "SegmentationCategoryTypeModifier-HiEndSeg.term.json"
CONTEXT = "Segmentation category and type - HiEndSeg"


@pytest.fixture(scope="module")
def logic():
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    assert load_terminology(logic, PATH) == CONTEXT
    return logic


@contextlib.contextmanager
def quiet():
    """VTK's own error lines are expected here."""
    before = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(before)


@pytest.mark.parametrize("label", card_labels(), ids=lambda label: label["id"])
def test_slicer_finds_each_structure_of_the_default_model(logic, label):
    """From the tag that we write into a segment: same codes, and the colour and id of our own list."""
    label = Label.from_dict(label)
    segment, tag, entry = slicer.vtkSegment(), vtk.reference(""), slicer.vtkSlicerTerminologyEntry()
    describe_segment(segment, label)
    assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
    assert logic.DeserializeTerminologyEntry(str(tag), entry)
    assert logic.UpdateEntryFromLoadedTerminologies(entry, [CONTEXT], [])
    assert entry.GetTerminologyContextName() == CONTEXT
    parts = [entry.GetCategoryObject(), entry.GetTypeObject(), entry.GetTypeModifierObject()]
    wanted = [label.terminology[key] for key in ("category", "type", "modifier")]
    for part, codes in zip(parts, wanted):
        found = (part.GetCodingSchemeDesignator(), part.GetCodeValue(), part.GetCodeMeaning())
        assert found == tuple(codes) if codes else found[1] is None
    shown = parts[2] if wanted[2] else parts[1]
    assert shown.GetSlicerLabel() == label.id
    assert np.array_equal(shown.GetRecommendedDisplayRGBValue(), label.color)


def test_each_structure_is_listed_once(logic):
    category = slicer.vtkSlicerTerminologyCategory()
    assert logic.GetNumberOfCategoriesInTerminology(CONTEXT) == 1
    assert logic.GetNthCategoryInTerminology(CONTEXT, 0, category)
    types = json.loads(PATH.read_text())["SegmentationCodes"]["Category"][0]["Type"]
    assert logic.GetNumberOfTypesInTerminologyCategory(CONTEXT, category) == len(types)
    assert len({entry["CodeValue"] for entry in types}) == len(types)
    labels = [leaf["3dSlicerLabel"] for entry in types for leaf in entry.get("Modifier", [entry])]
    assert sorted(labels) == sorted(label["id"] for label in card_labels())


def test_files_that_are_none_are_refused(logic, tmp_path):
    with pytest.raises(InputError, match="missing"):
        load_terminology(logic, tmp_path / "none.term.json")
    (tmp_path / "broken.term.json").write_text("{not json")
    with quiet(), pytest.raises(InputError, match="not a terminology file"):
        load_terminology(logic, tmp_path / "broken.term.json")
