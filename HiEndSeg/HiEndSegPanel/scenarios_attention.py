"""The self test's scenario of the Attention section: the real engine, this Slicer's views, all as before at the end."""

from __future__ import annotations

import importlib.metadata

import slicer

from .scenarios import openPanel, sampleVolume, waitUntil


def attentionFromStartToEnd(test, logic):
    """A map comes into every view of the volume, follows the point, is kept, and goes without a trace."""
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        test.skipTest("PyTorch is not installed in this Slicer: see the set-up page of HiEndSeg")
    with openPanel(test) as widget:
        ui, attention = widget.ui, widget.panel.sections.attention

        def settle():
            test.assertTrue(waitUntil(lambda: not attention.state.busy and attention.state.phase != "starting", 300))
            test.assertEqual(attention.state.phase, "shown", attention.state.headline)
            return attention.state

        volume = sampleVolume()
        views = _views()
        for view in views:
            view.SetBackgroundVolumeID(volume.GetID())
        before = [(view.GetForegroundVolumeID(), view.GetForegroundOpacity()) for view in views]
        ui.volumeSelector.setCurrentNode(volume)
        test.assertTrue(waitUntil(lambda: ui.attentionButton.enabled), attention.state.headline)
        ui.attentionButton.click()
        state = settle()
        for view in views:
            test.assertEqual(view.GetForegroundVolumeID(), state.heat_id)
        point = slicer.mrmlScene.GetNodeByID(state.point_id)
        point.SetNthControlPointPositionWorld(0, state.point[0] + 12.0, state.point[1], state.point[2])
        state = settle()
        bounds = [0.0] * 6
        slicer.mrmlScene.GetNodeByID(state.heat_id).GetRASBounds(bounds)
        for axis in range(3):
            test.assertTrue(bounds[2 * axis] < state.point[axis] < bounds[2 * axis + 1], "the window holds the point")
        ui.attentionSaveButton.click()
        kept = slicer.mrmlScene.GetNodeByID(attention.state.saved_id)
        test.assertIn("attention", kept.GetName())
        ui.attentionButton.click()
        test.assertEqual([(view.GetForegroundVolumeID(), view.GetForegroundOpacity()) for view in views], before)
        test.assertIsNone(attention.state.heat_id)


def _views():
    """The slice views that there are: those of the layout, and none without a main window."""
    scene, kind = slicer.mrmlScene, "vtkMRMLSliceCompositeNode"
    return [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]
