"""Slice pictures for the screenshots: drawn off-screen by MRML's own slice logic and displayable managers."""

from __future__ import annotations

import slicer
import vtk
from PySide6 import QtCore, QtGui
from vtkmodules.util import numpy_support

SIZE = 420
_AXES = {"Axial": (0, 1), "Coronal": (0, 2)}


def beside(panel, volume, segmentation, shown=None):
    """A pixmap: the panel's picture, and an axial and a coronal slice of the volume with the segmentation.

    shown: function that is called when the view shows the volume, for what puts more into views.
    """
    if volume is None:
        return panel
    with SliceView(volume.GetScene()) as view:
        pictures = [view.draw(volume, segmentation, orientation, shown) for orientation in _AXES]
    whole = QtGui.QPixmap(panel.width() + SIZE, max(panel.height(), SIZE * len(pictures)))
    whole.fill(QtGui.QColor(0, 0, 0))
    painter = QtGui.QPainter(whole)
    painter.drawPixmap(QtCore.QPoint(0, 0), panel)
    for row, picture in enumerate(pictures):
        painter.drawImage(QtCore.QPoint(panel.width(), row * SIZE), picture)
    painter.end()
    return whole


class SliceView:
    """One square slice view of a scene. It must be closed, in the order that `__exit__` has: VTK crashes otherwise."""

    def __init__(self, scene):
        self._scene = scene

    def __enter__(self):
        application = slicer.app.logic
        self._node = slicer.vtkMRMLSliceNode()
        self._node.SetLayoutName("picture")
        self._node.SetSingletonTag("picture")
        self._scene.AddNode(self._node)
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(application)
        application.GetSliceLogics().AddItem(self._logic)
        self._logic.SetMRMLScene(self._scene)
        self._logic.SetSliceNode(self._node)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetSize(SIZE, SIZE)
        self._renderer = vtk.vtkRenderer()
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()      # displayable managers crash without one
        self._interactor.SetRenderWindow(self._window)
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(self._mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        self._renderer.AddViewProp(actor)
        self._group = None
        return self

    def __exit__(self, *exception):
        if self._group is not None:
            self._group.SetMRMLDisplayableNode(None)
            self._manager.SetMRMLApplicationLogic(None)
            del self._manager
        self._interactor.SetRenderWindow(None)
        self._window.Finalize()
        self._group = None
        self._logic.SetMRMLScene(None)
        slicer.app.logic.GetSliceLogics().RemoveItem(self._logic)
        del self._logic
        for node in (self._scene.GetSingletonNode("picture", "vtkMRMLSliceCompositeNode"), self._node):
            if node is not None:
                self._scene.RemoveNode(node)

    def draw(self, volume, segmentation, orientation, shown=None):
        """A QImage of the slice through the middle of the segmentation, or of the volume where nothing is segmented."""
        bounds, found = [0.0] * 6, [1.0, 0.0] * 3
        volume.GetRASBounds(bounds)
        if segmentation is not None:
            segmentation.GetRASBounds(found)
        middle = found if found[0] <= found[1] else bounds
        turn = vtk.vtkMatrix3x3()
        getattr(slicer.vtkMRMLSliceNode, f"Get{orientation}SliceToRASMatrix")(turn)
        for row in range(3):
            for column in range(3):
                self._node.GetSliceToRAS().SetElement(row, column, turn.GetElement(row, column))
        self._node.UpdateMatrices()
        wide = 1.05 * max(bounds[2 * axis + 1] - bounds[2 * axis] for axis in _AXES[orientation])
        self._node.SetDimensions(SIZE, SIZE, 1)
        self._node.SetFieldOfView(wide, wide, 1)
        self._node.SetXYZOrigin(0, 0, 0)
        center = [(bounds[2 * n] + bounds[2 * n + 1]) / 2 for n in range(3)]
        depth = 3 - sum(_AXES[orientation])
        center[depth] = (middle[2 * depth] + middle[2 * depth + 1]) / 2
        self._node.JumpSliceByCentering(*center)
        display = volume.GetDisplayNode()
        if display is not None:
            display.AutoWindowLevelOff()
            display.SetWindowLevel(400, 40)
        self._logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        if shown is not None:
            shown()
        self._mapper.SetInputConnection(self._logic.GetImageDataConnection())     # another one once there is a volume
        self._window.Render()           # first the volume alone: a segmentation that was drawn before it lies below it
        if self._group is None:
            self._group = slicer.vtkMRMLDisplayableManagerGroup()
            self._group.SetRenderer(self._renderer)
            self._manager = slicer.vtkMRMLSegmentationsDisplayableManager2D()
            self._manager.SetMRMLApplicationLogic(slicer.app.logic)
            self._group.AddDisplayableManager(self._manager)
            self._group.SetMRMLDisplayableNode(self._node)
        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.Update()
        pixels = numpy_support.vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        data = pixels.reshape(SIZE, SIZE, -1)[::-1, :, :3].copy().tobytes()
        return QtGui.QImage(data, SIZE, SIZE, 3 * SIZE, QtGui.QImage.Format.Format_RGB888).copy()
