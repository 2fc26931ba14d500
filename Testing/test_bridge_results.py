"""Tables, undo, and which result belongs to which volume: in the scene itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bridge_scene import (LEGEND, VALUE, ct, ct_volume, label_volume, linear_transform, scene, slicer)   # noqa: F401

from HiEndSegLib.bridge import results, tables
from HiEndSegLib.bridge.history import Histories
from HiEndSegLib.bridge.layers import read_segments
from HiEndSegLib.bridge.scene import names_in_scene
from HiEndSegLib.bridge.segmentations import segmentation_from_labels, update_segmentation
from HiEndSegLib.bridge.volumes import (image_of_array, lattice_of, matrix_to_vtk, node_from_volume, volume_from_node,
                                        volume_view)
from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.statistics import structure_statistics

BINARY = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


@pytest.fixture
def node(ct):                                                                                       # noqa: F811
    return segmentation_from_labels(label_volume(), LEGEND, ct)


def draw(node, id_, mask, volume_node):
    """A segment of its own, as a person's brush leaves it."""
    image = image_of_array(mask.astype(np.uint8), slicer.vtkOrientedImageData())
    image.SetImageToWorldMatrix(matrix_to_vtk(lattice_of(volume_node)[1]))
    segment = slicer.vtkSegment()
    segment.SetName(id_)
    segment.AddRepresentation(BINARY, image)
    assert node.GetSegmentation().AddSegment(segment, id_)


def test_the_table_holds_what_was_found(scene, ct, node):                                           # noqa: F811
    statistics = structure_statistics(label_volume(), ct_volume(), LEGEND)
    table = tables.write_table(node, ct, statistics)
    assert table.GetName() == "CT HiEndSeg volumes" and results.table_of(node) is table
    rows = tables.read_table(table)
    assert [name for name, *_ in rows] == ["Liver", "Left kidney", "Spleen"], "the colon was not found"
    mask = label_volume().array == VALUE["liver"]
    assert rows[0][1] == round(mask.sum() / 1000, 2) and abs(rows[0][2] - ct_volume().array[mask].mean()) < 0.06
    assert [table.GetColumnName(n) for n in range(3)] == ["Structure", "Volume (ml)", "Mean (HU)"]
    count = scene.GetNumberOfNodes()
    table.SetName("mine")
    again = tables.write_table(node, ct, statistics[:1], unit="intensity")
    assert again is table and table.GetName() == "mine" and scene.GetNumberOfNodes() == count
    assert table.GetNumberOfRows() == 1 and table.GetColumnName(2) == "Mean (intensity)"


def test_a_mean_that_nobody_knows_is_no_number(ct, node):                                           # noqa: F811
    statistics = structure_statistics(label_volume(), None, LEGEND)
    assert all(math.isnan(mean) for *_, mean in tables.read_table(tables.write_table(node, ct, statistics)))


@pytest.mark.parametrize("parent", [False, True])
def test_measuring_again_counts_drawn_and_overlapping_segments(scene, ct, node, parent):            # noqa: F811
    if parent:
        for thing in (ct, node):
            thing.SetAndObserveTransformNodeID(linear_transform(scene).GetID() if thing is ct
                                               else ct.GetTransformNodeID())
    mask = np.zeros(ct_volume().shape, bool)
    mask[3:8, 3:6, 2:5] = True                  # over liver and kidney
    draw(node, "tumor", mask, ct)
    rows = {row["id"]: row for row in tables.measure_segments(node, ct)}
    assert list(rows) == ["liver", "kidney_left", "spleen", "colon", "tumor"]
    for id_, value in VALUE.items():
        assert rows[id_]["voxels"] == (label_volume().array == value).sum()
    assert rows["tumor"]["voxels"] == mask.sum()
    assert abs(rows["tumor"]["mean_hu"] - ct_volume().array[mask].mean()) < 1e-6
    assert rows["colon"]["mean_hu"] is None


def test_results_know_their_volume(scene, ct, node):                                                # noqa: F811
    other = node_from_volume(ct_volume(), scene, name="other")
    assert results.results_of(ct) == [], "nobody said that it was made here"
    results.mark_result(node, "tiny@1.0.0")
    second = segmentation_from_labels(label_volume(), LEGEND, ct)
    results.mark_result(second, "tiny@1.0.0")
    assert results.results_of(ct) == [node, second] and results.results_of(other) == []


def test_segments_that_hold_nothing_do_not_count(ct, node):                                         # noqa: F811
    node.GetSegmentation().AddEmptySegment("extra")
    ids = ["colon", "spleen", "extra", "unknown", "liver"]
    assert results.segments_in(node, ids) == ["spleen", "liver"]
    node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    node.GetSegmentation().RemoveRepresentation(BINARY)
    assert "liver" in results.segments_in(node, ids), "drawn as a surface"


def test_show_3d_on_and_off(node):
    assert not results.surface_shown(node)
    results.show_surface(node, True)
    assert results.surface_shown(node)
    node.GetDisplayNode().SetVisibility3D(False)
    assert not results.surface_shown(node)
    results.show_surface(node, True)
    assert results.surface_shown(node)
    results.show_surface(node, False)
    assert not results.surface_shown(node)
    with pytest.raises(InputError, match="No segmentation is chosen"):
        results.show_surface(None, True)


def test_histories_follow_their_segmentations(scene, ct, node):                                     # noqa: F811
    other = segmentation_from_labels(label_volume(), LEGEND, ct)
    histories = Histories()
    empty = label_volume().with_array(np.zeros(ct_volume().shape, np.uint8))
    for thing in (node, other):
        update_segmentation(thing, empty, LEGEND, ct, save_undo=lambda thing=thing: histories.save(thing))
        assert not read_segments(thing, ct, VALUE).array.any()
    assert histories.get("nothing") is None and histories.get(node.GetID()).can_undo
    assert histories.get(node.GetID()).undo() and not histories.get(node.GetID()).undo()
    assert np.array_equal(read_segments(node, ct, VALUE).array, label_volume().array)
    assert not read_segments(other, ct, VALUE).array.any(), "each has its own"
    histories.forget(node.GetID())
    histories.forget(node.GetID())
    assert histories.get(node.GetID()) is None and histories.get(other.GetID()) is not None
    histories.clear()
    assert histories.get(other.GetID()) is None


def test_a_hook_may_save_instead(node):
    histories, answers = Histories(), [False, True]
    histories.hook = lambda thing: thing is node and answers.pop(0)
    histories.save(node)
    assert histories.get(node.GetID()) is not None
    histories.save(node)
    assert histories.get(node.GetID()) is None, "a state of before the editor's would bring back too much"


def test_a_view_copies_nothing_and_a_volume_does(ct):                                               # noqa: F811
    view, copy = volume_view(ct), volume_from_node(ct)
    assert np.array_equal(view.array, copy.array) and view.same_lattice(copy)
    view.array[0, 0, 0] = 77
    assert volume_from_node(ct).array[0, 0, 0] == 77 and copy.array[0, 0, 0] != 77


def test_the_series_modality_is_believed(scene, ct):                                                # noqa: F811
    assert "modality" not in volume_view(ct).meta
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), ct)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "PT")
    assert volume_view(ct).meta["modality"] == volume_from_node(ct).meta["modality"] == "PT"


def test_names_of_people_are_found(scene, ct):                                                      # noqa: F811
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Maria^Anna")
    assert {"CT", "Maria^Anna"} <= set(names_in_scene(scene))
    assert names_in_scene(slicer.vtkMRMLScene()) == []
