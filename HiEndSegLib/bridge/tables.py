"""Volumes (ml) and mean intensities per structure as a table node, from a result or from what a person made of it."""

from __future__ import annotations

from collections.abc import Sequence

import vtk

from ..geometry.labels import Label
from ..geometry.volume import Volume
from .layers import read_segments
from .results import TABLE, table_of
from .scene import check_node, place_beside, unique_name
from .volumes import lattice_of, volume_view


def write_table(segmentation_node, volume_node, statistics: Sequence[dict], *, unit: str = "HU"):
    """The segmentation's table, made or filled anew: one row per structure that has voxels.

    statistics: rows as `structure_statistics` gives them. Columns: Structure, Volume (ml), Mean (HU). A table that a
    person renamed or moved stays where it is. Returns the vtkMRMLTableNode.
    """
    check_node(segmentation_node, "vtkMRMLSegmentationNode")
    scene = segmentation_node.GetScene()
    node = table_of(segmentation_node)
    if node is None:
        node = scene.AddNewNodeByClass("vtkMRMLTableNode",
                                       unique_name(scene, f"{segmentation_node.GetName()} volumes"))
        node.SetAttribute(TABLE, "1")
        segmentation_node.SetNodeReferenceID(TABLE, node.GetID())
        place_beside(node, volume_node)
    rows = [row for row in statistics if row["voxels"]]
    names, volumes, means = vtk.vtkStringArray(), vtk.vtkDoubleArray(), vtk.vtkDoubleArray()
    names.SetName("Structure")
    volumes.SetName("Volume (ml)")
    means.SetName(f"Mean ({unit})")
    for row in rows:
        names.InsertNextValue(row["name"])
        volumes.InsertNextValue(round(row["volume_ml"], 2))
        means.InsertNextValue(float("nan") if row["mean_hu"] is None else round(row["mean_hu"], 1))
    modified = node.StartModify()
    try:
        table = vtk.vtkTable()
        for column in (names, volumes, means):
            table.AddColumn(column)
        node.SetAndObserveTable(table)
        node.SetUseColumnTitleAsColumnHeader(True)
        node.SetLocked(True)
    finally:
        node.EndModify(modified)
    return node


def read_table(table_node) -> list[tuple[str, float, float]]:
    """(structure, ml, mean) of each row of a table made by `write_table`."""
    table = table_node.GetTable()
    return [(table.GetValue(row, 0).ToString(), table.GetValue(row, 1).ToDouble(), table.GetValue(row, 2).ToDouble())
            for row in range(table.GetNumberOfRows())]


def measure_segments(segmentation_node, volume_node) -> list[dict]:
    """Statistics of all segments as they are now, drawn ones included; overlapping ones count their voxels each."""
    from ..geometry.statistics import structure_statistics

    check_node(segmentation_node, "vtkMRMLSegmentationNode")
    _shape, matrix = lattice_of(volume_node)
    segmentation = segmentation_node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    image, rows = volume_view(volume_node), []
    for start in range(0, len(ids), 255):       # a label map holds 255 of them
        legend = [Label(value, id_, segmentation.GetSegment(id_).GetName(), (0, 0, 0))
                  for value, id_ in enumerate(ids[start:start + 255], start=1)]
        reading = read_segments(segmentation_node, volume_node, {label.id: label.value for label in legend})
        found = {row["id"]: row for row in structure_statistics(Volume(reading.array, matrix), image, legend)}
        for id_ in {overlap.first for overlap in reading.overlaps} | {overlap.second for overlap in reading.overlaps}:
            label = next(label for label in legend if label.id == id_)
            alone = read_segments(segmentation_node, volume_node, {id_: label.value})
            found[id_] = structure_statistics(Volume(alone.array, matrix), image, [label])[0]
        rows += [found[label.id] for label in legend]
    return rows
