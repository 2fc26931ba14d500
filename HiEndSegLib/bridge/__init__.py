"""Between MRML nodes and `Volume`: the same code in desktop Slicer and on the slicer-core wheel.

scene.py: what both homes need done once, and checks of nodes a person chose. volumes.py: volume nodes, points, boxes.
layers.py: a segmentation's shared images on a volume's lattice. segmentations.py: results into segmentation nodes.
corrections.py: what a person changed; structures.py: which structure each segment is, new ones too. results.py: which
result belongs to which volume, Show 3D. tables.py: volumes and mean HU. plots.py: charts. outlines.py: before and
after. history.py: undo. sequences.py: 4D. heat.py: attention maps as volumes; views.py, pairs.py, cloud.py: in slice
views, side by side, in 3D, and all as before afterwards; points.py: the point that is asked about; planes.py: the slice
on screen as numbers. Imports `slicer`, `vtk` and floor 0 only; the scene is always an argument or taken from a node.
VTK is not thread-safe: call everything here from the main thread.
"""
