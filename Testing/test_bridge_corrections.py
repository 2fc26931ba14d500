"""A person's edits read back: exact where nothing was touched, decided and reported where it is ambiguous."""

from __future__ import annotations

import numpy as np
import pytest

from bridge_scene import (LATTICES, LEGEND, VALUE, affine, ct, ct_volume, grid_transform, label_volume,  # noqa: F401
                          linear_transform, rotation, scene, slicer)

from HiEndSegLib.bridge import volumes
from HiEndSegLib.bridge.corrections import Edit, differences, read_correction
from HiEndSegLib.bridge.history import History
from HiEndSegLib.bridge.segmentations import segmentation_from_labels, update_segmentation
from HiEndSegLib.errors import InputError

BINARY = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
SURFACE = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
LOGIC = slicer.vtkSlicerSegmentationsModuleLogic


def oriented(mask, matrix):
    image = volumes.image_of_array(mask.astype(np.uint8), slicer.vtkOrientedImageData())
    image.SetImageToWorldMatrix(volumes.matrix_to_vtk(matrix))
    return image


def paint(node, id_, mask, matrix, *, overwrite):
    """As the segment editor does: replace one segment; voxels of the `overwrite` segments give way."""
    image = oriented(mask, matrix)
    assert LOGIC.SetBinaryLabelmapToSegment(image, node, id_, LOGIC.MODE_REPLACE, image.GetExtent(), False, overwrite)


@pytest.mark.parametrize("parent", [None, "linear", "nonlinear"])
@pytest.mark.parametrize("lattice", ["axis-aligned", "oblique", "left-handed", "one-slice"])
def test_one_organ_edited_neighbours_untouched(scene, lattice, parent):
    labels = label_volume(lattice)
    ct = volumes.node_from_volume(ct_volume(lattice), scene)
    if parent:
        transform = linear_transform(scene) if parent == "linear" else grid_transform(scene)
        ct.SetAndObserveTransformNodeID(transform.GetID())
    node = segmentation_from_labels(labels, LEGEND, ct)
    liver = labels.array == VALUE["liver"]
    liver[1:3] = False          # two slabs erased
    liver[3:5, 8:10, 0] = True  # and four voxels drawn
    paint(node, "liver", liver, labels.ijk_to_ras, overwrite=[label.id for label in LEGEND])
    correction = read_correction(node, ct, LEGEND, model=labels)
    assert np.array_equal(correction.labels.array == VALUE["liver"], liver)
    others = labels.array.copy()
    others[labels.array == VALUE["liver"]] = 0
    mine = correction.labels.array.copy()
    mine[liver] = 0
    assert np.array_equal(mine, others) and correction.messages == []
    assert correction.labels.same_lattice(labels)

    found = differences(correction, labels, LEGEND)
    depth = min(5, labels.shape[2])
    assert found.edits == {"liver": Edit("liver", added=4, removed=2 * 6 * depth, box=((1, 5), (2, 10), (0, depth)))}
    assert np.array_equal(found.changed, correction.labels.array != labels.array)


def test_an_untouched_result_has_no_differences(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct, only_present=True)
    correction = read_correction(node, ct, LEGEND, model=labels)
    found = differences(correction, labels, LEGEND)
    assert not found.changed.any() and found.edits == {} and correction.missing == ["colon"]


def test_painting_over_a_neighbour_counts_for_both(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    grown = np.isin(labels.array, [VALUE["liver"], VALUE["kidney_left"]]) & (np.arange(14) < 7)[:, None, None]
    paint(node, "liver", grown, labels.ijk_to_ras, overwrite=["kidney_left"])
    found = differences(read_correction(node, ct, LEGEND, model=labels), labels, LEGEND)
    assert found.edits == {"liver": Edit("liver", 20, 0, ((6, 7), (3, 8), (0, 4))),
                           "kidney_left": Edit("kidney_left", 0, 20, ((6, 7), (3, 8), (0, 4)))}


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("edited", ["liver", "kidney_left"])
def test_overlapping_segments_are_reported_and_the_drawn_one_wins(scene, ct, edited, with_model):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    both = np.isin(labels.array, [VALUE["liver"], VALUE["kidney_left"]])
    paint(node, edited, both, labels.ijk_to_ras, overwrite=[])      # "allow overlap"
    assert node.GetSegmentation().GetNumberOfLayers() == 2
    correction = read_correction(node, ct, LEGEND, model=labels if with_model else None)
    other = "kidney_left" if edited == "liver" else "liver"
    count = int((labels.array == VALUE[other]).sum())
    (overlap,) = correction.overlaps
    assert {overlap.first, overlap.second} == {"liver", "kidney_left"} and overlap.voxels == count
    name = {label.id: label.name for label in LEGEND}[overlap.kept]
    assert f"overlap in {count} voxels; they were read as {name}" in correction.messages[0]
    assert overlap.kept == (edited if with_model else overlap.second)
    assert np.array_equal(correction.labels.array == VALUE[overlap.kept],
                          both if overlap.kept == edited else labels.array == VALUE[overlap.kept])


def test_three_claims_on_one_voxel(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    spot = np.zeros(labels.shape, bool)
    spot[2:4, 3:5, 1] = True        # four voxels of the liver
    for id_ in ("kidney_left", "spleen"):
        paint(node, id_, spot | (labels.array == VALUE[id_]), labels.ijk_to_ras, overwrite=[])
    correction = read_correction(node, ct, LEGEND, model=labels)
    assert sum(o.voxels for o in correction.overlaps) == 8
    assert np.isin(correction.labels.array[spot], [VALUE["kidney_left"], VALUE["spleen"]]).all()
    assert np.array_equal(correction.labels.array[~spot], labels.array[~spot])


def test_own_segments_are_left_out_and_named(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    segment = slicer.vtkSegment()
    segment.SetName("Tumour")
    segment.AddRepresentation(BINARY, oriented(labels.array == VALUE["liver"], labels.ijk_to_ras))
    node.GetSegmentation().AddSegment(segment, "Segment_1")
    correction = read_correction(node, ct, LEGEND, model=labels)
    assert correction.unknown == ["Segment_1"] and correction.overlaps == []
    assert correction.messages == ["Not among the model's structures and left out: Tumour."]
    assert np.array_equal(correction.labels.array, labels.array)


def test_deleting_a_segment_is_no_correction_and_emptying_one_is(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    node.GetSegmentation().RemoveSegment("spleen")
    assert LOGIC.ClearSegment(node, "kidney_left")
    node.GetSegmentation().GetSegment("liver").SetName("renamed by hand")
    correction = read_correction(node, ct, LEGEND, model=labels)
    assert correction.missing == ["spleen"]
    found = differences(correction, labels, LEGEND)
    kidney = labels.array == VALUE["kidney_left"]
    assert set(found.edits) == {"kidney_left"} and found.edits["kidney_left"].removed == kidney.sum()
    assert np.array_equal(found.changed, kidney)


def test_segments_of_other_lattices_are_resampled(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    fine = affine(spacing=(0.5, 0.5, 0.5), origin=(12.25, -40.25, 76.75))       # eight voxels in each of the CT's
    mask = np.kron(labels.array == VALUE["liver"], np.ones((2, 2, 2), bool))
    mask = np.pad(mask, 20)     # and it reaches beyond the CT on every side
    fine = fine @ affine(origin=(-20, -20, -20))
    mask[:5] = mask[-5:] = True
    node.GetSegmentation().RemoveSegment("liver")
    segment = slicer.vtkSegment()
    segment.AddRepresentation(BINARY, oriented(mask, fine))
    node.GetSegmentation().AddSegment(segment, "liver")
    correction = read_correction(node, ct, LEGEND)
    assert correction.resampled == ["liver"] and "resampled onto the lattice" in correction.messages[0]
    assert np.array_equal(correction.labels.array, labels.array)


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_a_volume_moved_after_the_segmentation_is_followed(scene, kind):
    """The parent on one node only: structures are read where they are seen in the world."""
    labels = label_volume("anisotropic")
    ct = volumes.node_from_volume(ct_volume("anisotropic"), scene)
    node = segmentation_from_labels(labels, LEGEND, ct)
    if kind == "linear":
        transform = linear_transform(scene, turn=(0, 0, 0), move=(1.0, 0, 0))       # two voxels against i
    else:
        transform = grid_transform(scene, millimetres=0.01)
    ct.SetAndObserveTransformNodeID(transform.GetID())
    correction = read_correction(node, ct, LEGEND)
    assert set(correction.resampled) == ({label.id for label in LEGEND} if kind == "nonlinear" else set())
    shift = 2 if kind == "linear" else 0
    expected = np.zeros_like(labels.array)
    expected[shift:] = labels.array[:labels.shape[0] - shift]
    agreement = (correction.labels.array == expected).mean()
    assert agreement == 1 if kind == "linear" else agreement > 0.98


def test_a_cropped_layer_and_one_beyond_the_volume(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    beyond = np.ones((4, 30, 3), bool)
    matrix = labels.ijk_to_ras @ affine(origin=(-2, 5, 7))      # i -2..1, j 5.., k 7..9
    node.GetSegmentation().RemoveSegment("colon")
    segment = slicer.vtkSegment()
    segment.AddRepresentation(BINARY, oriented(beyond, matrix))
    node.GetSegmentation().AddSegment(segment, "colon")
    correction = read_correction(node, ct, LEGEND, model=labels)
    expected = labels.array.copy()
    expected[0:2, 5:12, 7:9] = VALUE["colon"]
    assert np.array_equal(correction.labels.array, expected) and correction.resampled == []
    segment.AddRepresentation(BINARY, oriented(beyond, labels.ijk_to_ras @ affine(origin=(50, 0, 0))))
    assert np.array_equal(read_correction(node, ct, LEGEND).labels.array, labels.array)


def test_a_mirrored_or_permuted_layer_is_not_taken_for_the_volumes_own(scene, ct):
    labels = label_volume()
    liver = labels.with_array(np.where(labels.array == VALUE["liver"], labels.array, 0).astype(np.uint8))
    node = segmentation_from_labels(liver, LEGEND[:1], ct)
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = labels.shape[0] - 1
    segment = node.GetSegmentation().GetSegment("liver")
    segment.AddRepresentation(BINARY, oriented(liver.array[::-1] != 0, labels.ijk_to_ras @ mirror))
    assert np.array_equal(read_correction(node, ct, LEGEND).labels.array, liver.array)


def test_a_surface_drawn_elsewhere_becomes_voxels_without_changing_the_node(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    node.GetSegmentation().SetConversionParameter("Smoothing factor", "0.0")     # it would eat structures this small
    node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    node.RemoveBinaryLabelmapRepresentation()
    correction = read_correction(node, ct, LEGEND)
    assert not node.GetSegmentation().ContainsRepresentation(BINARY)
    for id_ in ("liver", "kidney_left"):
        mine, own = correction.labels.array == VALUE[id_], labels.array == VALUE[id_]
        assert 2 * (mine & own).sum() / (mine.sum() + own.sum()) > 0.7
    update_segmentation(node, labels, LEGEND, ct)       # and such a node can still be written to
    assert np.array_equal(read_correction(node, ct, LEGEND).labels.array, labels.array)


def test_correct_update_undo_and_read_again(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    liver = np.roll(labels.array == VALUE["liver"], 3, axis=2)
    paint(node, "liver", liver, labels.ijk_to_ras, overwrite=["spleen", "kidney_left"])
    edited = read_correction(node, ct, LEGEND, model=labels).labels.array
    history = History(node)
    update_segmentation(node, labels, LEGEND, ct, save_undo=history.save)
    assert np.array_equal(read_correction(node, ct, LEGEND).labels.array, labels.array)
    assert history.undo()
    assert np.array_equal(read_correction(node, ct, LEGEND).labels.array, edited)


def test_what_cannot_be_read_is_refused_in_a_sentence(scene, ct):
    labels = label_volume()
    node = segmentation_from_labels(labels, LEGEND, ct)
    foreign = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "foreign")
    small = ct_volume("one-slice")
    for given, volume_node, model, words in [
            (None, ct, None, "No segmentation is chosen"), (ct, ct, None, '"CT" is not a segmentation'),
            (node, None, None, "No volume is chosen"), (foreign, ct, None, "holds none of the model's structures"),
            (node, ct, small, "does not fit")]:
        with pytest.raises(InputError, match=words):
            read_correction(given, volume_node, LEGEND, model=model)
    with pytest.raises(ValueError, match="cannot be compared"):
        differences(read_correction(node, ct, LEGEND), small, LEGEND)
    scene.RemoveNode(node)
    with pytest.raises(InputError, match="no longer in the scene"):
        read_correction(node, ct, LEGEND)
