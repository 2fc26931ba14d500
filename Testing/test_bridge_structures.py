"""Which structure a segment stands for: the model's own, or a new one with an id that a card takes. Real MRML."""

from __future__ import annotations

import re

import numpy as np
import pytest
from bridge_scene import LEGEND, VALUE, ct, ct_volume, label_volume, scene, sct, slicer             # noqa: F401

from HiEndSegLib.bridge.corrections import differences, read_correction
from HiEndSegLib.bridge.segmentations import segmentation_from_labels
from HiEndSegLib.bridge.structures import drawn_structures, segment_volumes
from HiEndSegLib.bridge.volumes import image_of_array, matrix_to_vtk
from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.labels import Label, structure_id, terminology_tag
from HiEndSegLib.models.card_schema import LABEL_ID_PATTERN


def add_segment(node, mask, matrix, name, id_="", terminology=None, color=(0.2, 0.4, 0.6)):
    """Draw a segment as an editor leaves it: an image of its own."""
    segment = slicer.vtkSegment()
    segment.SetName(name)
    segment.SetColor(*color)
    if terminology is not None:
        segment.SetTag("TerminologyEntry", terminology_tag(Label(1, "x", "x", (0, 0, 0), terminology)))
    image = image_of_array(np.asarray(mask, np.uint8), slicer.vtkOrientedImageData())
    image.SetImageToWorldMatrix(matrix_to_vtk(matrix))
    segment.AddRepresentation(slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName(), image)
    assert node.GetSegmentation().AddSegment(segment, id_)


@pytest.fixture
def node(scene):                                                                                    # noqa: F811
    from HiEndSegLib.bridge.scene import prepare_scene

    prepare_scene(scene)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.SetSourceRepresentationToBinaryLabelmap()
    return node


@pytest.mark.parametrize("name, id_", [
    ("Liver", "liver"), ("Rippe, links", "rippe_links"), ("Ödem (groß) 2", "odem_gross_2"), ("3rd ventricle",
     "structure_3rd_ventricle"), ("肝臓", "structure"), ("", "structure"), ("x" * 200, "x" * 60),
    ("--a__b--", "a_b"), ("tumor_", "tumor")])
def test_ids_of_what_people_type_fit_a_card(name, id_):
    assert structure_id(name) == id_
    twice = structure_id(name, taken={id_, f"{id_}_2"})
    assert twice == f"{id_}_3"
    for made in (id_, twice):
        assert re.fullmatch(LABEL_ID_PATTERN, made) and len(made) <= 64


def test_a_name_without_letters_gives_way_to_the_terminology():
    assert structure_id("肝臓", sct("10200004", "Liver")) == "liver"
    assert structure_id("左腎", sct("64033007", "Kidney", "left")) == "left_kidney"


def test_segments_are_recognized_by_id_then_meaning_then_name(node):
    one, eye = np.ones((2, 2, 2)), np.eye(4)
    add_segment(node, one, eye, "anything", "spleen")
    add_segment(node, one, eye, "Niere", "S_1", sct("64033007", "Kidney", "left"))
    add_segment(node, one, eye, "Niere rechts", "S_2", sct("64033007", "Kidney", "right"))
    add_segment(node, one, eye, "LIVER ", "S_3")
    add_segment(node, one, eye, "liver", "S_4")                     # the second one that could be the liver
    add_segment(node, one, eye, "Segment_1", "S_5", sct("39607008", "Lung", "left"))
    add_segment(node, one, eye, "Segment_2", "S_6", sct("85756007", "Tissue"))
    add_segment(node, np.zeros((2, 2, 2)), eye, "colon", "S_7")
    found = drawn_structures(node, LEGEND)
    assert [(one.segment_id, one.label.id, one.how) for one in found] == [
        ("spleen", "spleen", "id"), ("S_1", "kidney_left", "terminology"), ("S_2", "niere_rechts", "new"),
        ("S_3", "liver", "name"), ("S_4", "liver_2", "new"), ("S_5", "left_lung", "new"), ("S_6", "segment_2", "new"),
        ("S_7", "colon", "name")]
    assert [one.empty for one in found] == [False] * 7 + [True]
    assert [one.milliliters for one in found] == [0.008] * 7 + [0.0]
    assert found[3].label is LEGEND[0] and found[5].label.name == "Left Lung"
    new = [one.label for one in found if one.is_new]
    assert len({label.value for label in new} | set(VALUE.values())) == len(new) + len(LEGEND)
    assert new[0].color == (51, 102, 153) and new[0].terminology["modifier"][2] == "Right"


def test_the_other_side_is_another_structure(node):
    add_segment(node, np.ones((2, 2, 2)), np.eye(4), "Niere", "S_1", sct("64033007", "Kidney", "right"))
    add_segment(node, np.ones((2, 2, 2)), np.eye(4), "Nieren", "S_2", sct("64033007", "Kidney"))
    assert [(one.label.id, one.how) for one in drawn_structures(node, LEGEND)] == [("niere", "new"), ("nieren", "new")]


def test_a_terminology_that_no_card_could_hold_is_left_out(node):
    segment = slicer.vtkSegment()
    segment.SetName("Odd")
    segment.SetTag("TerminologyEntry", f"context~SCT^1^{'x' * 101}~SCT^2^Thing~^^~list~^^~^^")
    node.GetSegmentation().AddSegment(segment, "odd")
    found = drawn_structures(node, LEGEND)
    assert found[0].label.terminology is None and found[0].label.id == "odd"


def test_only_as_many_new_structures_as_a_label_map_has_values(node):
    for n in range(256):
        add_segment(node, np.ones((1, 1, 1)), np.eye(4), f"part {n}")
    found = drawn_structures(node, LEGEND)
    assert len(found) == 254 - len(LEGEND) and max(one.label.value for one in found) == 254


def test_new_structures_are_read_beside_the_models_own(scene, ct):                                  # noqa: F811
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    tumor = np.zeros(labels.shape, bool)
    tumor[2:5, 3:6, 1:4] = True                                     # inside the liver
    tumor[12:14, 0:3, 0:2] = True
    add_segment(node, tumor, labels.ijk_to_ras, "Tumor A")
    drawn = drawn_structures(node, LEGEND)
    assert [one.label.id for one in drawn] == ["liver", "kidney_left", "spleen", "colon", "tumor_a"]
    correction = read_correction(node, ct, LEGEND, model=labels, drawn=drawn)
    value = drawn[-1].label.value
    assert np.array_equal(correction.labels.array == value, tumor), "drawn over the model's liver, so it wins"
    assert [(o.first, o.second, o.kept, o.voxels) for o in correction.overlaps] == [("liver", "tumor_a", "tumor_a", 27)]
    assert "Liver and Tumor A overlap in 27 voxels; they were read as Tumor A." in correction.messages
    assert correction.legend == [one.label for one in drawn] and correction.unknown == []
    found = differences(correction, labels, correction.legend)
    assert found.edits["tumor_a"].added == int(tumor.sum()) and found.edits["liver"].removed == 27
    without = read_correction(node, ct, LEGEND, model=labels)
    assert np.array_equal(without.labels.array, labels.array) and without.unknown == [drawn[-1].segment_id]
    with pytest.raises(InputError, match="holds none of the model's structures"):
        read_correction(node, ct, LEGEND, drawn=[])


def test_a_drawing_from_elsewhere_is_read_without_ids_of_ours(scene, ct, node):                     # noqa: F811
    labels = label_volume()
    add_segment(node, labels.array == VALUE["liver"], labels.ijk_to_ras, "Leber", "S_1", sct("10200004", "Liver"))
    add_segment(node, labels.array == VALUE["spleen"], labels.ijk_to_ras, "Spleen", "S_2")
    correction = read_correction(node, ct, LEGEND)
    expected = np.where(labels.array == VALUE["kidney_left"], 0, labels.array)
    assert np.array_equal(correction.labels.array, expected) and correction.missing == ["kidney_left", "colon"]


def test_volumes_of_shared_layers_cropped_images_and_surfaces(scene, ct):                           # noqa: F811
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    voxels = {label.id: int((labels.array == label.value).sum()) for label in LEGEND}
    spaced = np.diag([0.5, 2.0, 3.0, 1.0])
    add_segment(node, np.ones((4, 3, 2)), spaced, "Cyst", "cyst")
    assert segment_volumes(node.GetSegmentation()) == pytest.approx(
        {**{id_: count / 1000 for id_, count in voxels.items()}, "cyst": 24 * 3 / 1000})
    node.CreateClosedSurfaceRepresentation()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    node.GetSegmentation().SetSourceRepresentationName(surface)
    node.RemoveBinaryLabelmapRepresentation()
    assert segment_volumes(node.GetSegmentation()) == {}
    assert not any(one.empty for one in drawn_structures(node, LEGEND))
