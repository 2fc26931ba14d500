"""What Reload-and-Test and CTest do in Slicer, and the project's tests outside of it: the panel used as a person does.

Each scenario takes the running test case and the module's logic. Those with a quick engine need no PyTorch.
"""

from __future__ import annotations

import importlib.metadata
import time
from contextlib import contextmanager

import slicer
from HiEndSegLib.engine.interface import Engine, Job, JobState


class QuickEngine(Engine):
    """Answers at the next look, by thresholds instead of a network: enough to see what the panel makes of an answer.

    patient: segmenting and adapting go halfway and wait there, until it is set to False, or they are cancelled or asked
    to finish. Adapting never makes anything better, so no version is kept.
    """

    def __init__(self, patient=False):
        self.patient, self.closed, self._jobs, self._number = patient, False, [], 0

    def _submit(self, operation, arguments):
        self._number += 1
        job = Job(self, self._number, operation)
        job.arguments = arguments
        job._move(JobState.RUNNING)
        self._jobs.append(job)
        return job

    def _pump(self, timeout):
        for job in self._jobs:
            if job.operation == "adapt" and not job.records:
                self._tell(job)
            if job.operation in ("segment", "adapt") and self.patient and not job.finishing:
                job._advance(0.5, "Tile 1 of 2" if job.operation == "segment" else "Step 20 of 40")
            elif not job.done:
                job._finish(getattr(self, "_" + job.operation + "Answer")(**job.arguments))
        self._jobs = [job for job in self._jobs if not job.done]

    def _cancel(self, job):
        job._cancelled()

    def _finish_early(self, job):
        job._finish_soon()

    @staticmethod
    def _tell(job):
        """The records of the first half."""
        taught = job.arguments["structures"]
        for step in (5, 10, 15, 20):
            job._record({"kind": "step", "step": step, "of": 40, "loss": 1 / step, "seconds": step / 10})
            if step % 10 == 0:
                job._record({"kind": "score", "step": step, "dice": dict.fromkeys(taught, 0.5), "mean": 0.5,
                             "agreement": 0.99, "best": step == 10})

    def close(self):
        self.closed = True

    def _doctorAnswer(self):
        return {"versions": {"torch": "0"}, "models": [], "problems": [], "sentences": [],
                "devices": [{"kind": "cpu", "works": True, "sentence": "The CPU works.", "memory_bytes": 1 << 33}]}

    def _planAnswer(self, shape, ijk_to_ras, dtype, model, device):
        from HiEndSegLib.operations.plan import plan_memory

        spacing = [sum(float(ijk_to_ras[row][column]) ** 2 for row in range(3)) ** 0.5 for column in range(3)]
        return plan_memory(shape, spacing, model, "cpu", 8 << 30)

    def _segmentAnswer(self, volume, model, device, only, roi, **settings):
        """What is denser than water, as the first structure that was asked for."""
        from HiEndSegLib.geometry.statistics import structure_statistics
        from HiEndSegLib.operations.result import SegmentResult

        legend = [label for label in model.labels if only is None or label.id in only]
        labels = volume.with_array((volume.array > 0).astype("uint8") * legend[0].value)
        info = {"model": {"id": model.id, "version": model.version}, "device": "cpu", "parameters": {"roi": roi},
                "input": {"name": volume.name, "shape": list(volume.shape)}, "tiles": {"run": 1, "planned": 1},
                "timings": {"tiles": 0.1}}
        return SegmentResult(labels, legend, structure_statistics(labels, volume, legend), info)


    def _plan_adaptAnswer(self, **others):
        from HiEndSegLib.operations.adapt_plan import AdaptPlan

        def plan(speed, minutes):
            return AdaptPlan(speed=speed, device="cpu", steps=40, crops=0, minutes=minutes, bytes_host=1 << 29,
                             bytes_device=0, host_bytes=8 << 30, device_bytes=0, fits=True,
                             sentence=f"About {minutes:g} min.")

        return {"quick": plan("quick", 3.0), "full": plan("full", 20.0), "auto": "quick"}

    def _adaptAnswer(self, volume, labels, legend, structures, speed, seed, **others):
        """As before the lesson, and as after it."""
        from HiEndSegLib.engine.adapting import AdaptResult

        counts = {label.id: int((labels.array == label.value).sum()) for label in legend}
        taught = [{"id": label.id, "name": label.name, "new": False, "voxels": counts[label.id],
                   "held_out_voxels": counts[label.id] // 4, "dice_before": 0.5, "dice_after": 0.5,
                   "surface_before_mm": 4.0, "surface_after_mm": 4.0} for label in legend if label.id in structures]
        protected = [{"id": label.id, "name": label.name, "agreement": 0.99, "dice_before": None, "dice_after": None}
                     for label in legend if label.id not in structures]
        return AdaptResult(None, {
            "speed": "quick" if speed == "auto" else speed, "device": "cpu", "precision": "float32", "seed": seed,
            "threads": 1, "steps": 40, "best_step": 10, "seconds": 4.0, "stopped": "end", "taught": taught,
            "sentence": "Nothing got better.", "protected": protected, "worse": [], "better": False,
            "held_out_mm": [], "peak_memory_bytes": 1 << 28, "parameters": {}, "teaching_cases": 0}, [], None)


def sampleVolume(size=(96, 96, 60), corner=(35, 14, 64)):
    """A piece of the CT that ships, in the scene: liver, spleen and kidneys; one tile for the default model."""
    from HiEndSegLib.bridge.volumes import node_from_volume, volume_from_node
    from HiEndSegLib.desktop.samples import load_sample
    from HiEndSegLib.geometry.volume import Volume

    whole = load_sample(slicer)
    volume = volume_from_node(whole)
    slicer.mrmlScene.RemoveNode(whole)
    piece = volume.array[tuple(slice(low, low + n) for low, n in zip(corner, size))]
    matrix = volume.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ corner
    return node_from_volume(Volume(piece, matrix, "Sample"), slicer.mrmlScene)


def waitUntil(condition, seconds=60.0):
    """Let Slicer work until `condition()` holds; whether it came to that."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        slicer.app.processEvents()
        time.sleep(0.005)
    return True


@contextmanager
def openPanel(test, engine=None):
    """The module's panel, entered, on another engine for the while. Skips the test where packages are missing."""
    from . import machine

    widget = slicer.util.getModuleWidget("HiEndSeg")
    widget.enter()
    try:
        if widget.panel.sections is None:
            test.skipTest("HiEndSeg is not set up in this Slicer: see its set-up page")
        if engine is not None:
            widget.panel.sections.setEngine(engine)
        yield widget
    finally:
        if engine is not None and widget.panel.sections is not None:
            widget.panel.sections.setEngine(machine.engine())
        widget.exit()


@contextmanager
def fewSteps(engine, steps):
    """Adapting with this engine goes all the way in a few steps, without learning much."""
    submit = engine.submit_adapt
    engine.submit_adapt = lambda *case, **how: submit(*case, **{**how, "steps": steps})
    try:
        yield
    finally:
        del engine.submit_adapt


def correct(volume, segmentation, structure, name):
    """The upper half of a structure becomes another segment, as a person would do in the editor; gives its id."""
    util, segments = slicer.util, segmentation.GetSegmentation()
    array = util.arrayFromSegmentBinaryLabelmap(segmentation, structure, volume)
    slices = [k for k in range(len(array)) if array[k].any()]
    upper = array.copy()
    upper[:slices[len(slices) // 2]] = 0
    other = segments.AddEmptySegment("", name)
    util.updateSegmentBinaryLabelmapFromArray(array - upper, segmentation, structure, volume)
    util.updateSegmentBinaryLabelmapFromArray(upper, segmentation, other, volume)
    return other


def parametersBelongToTheScene(test, logic):
    """What was chosen is saved with the scene, and gone with what it named."""
    volume, parameters = sampleVolume(), logic.getParameterNode()
    parameters.volumeID, parameters.model, parameters.only = volume.GetID(), "some@1", ("liver", "spleen")
    parameters.versionName = "Mine"
    again = logic.getParameterNode()
    test.assertEqual((again.volumeID, again.model, again.only, again.versionName),
                     (volume.GetID(), "some@1", ("liver", "spleen"), "Mine"))
    again.only = ()
    test.assertEqual(parameters.only, ())
    again.only = None
    test.assertIsNone(parameters.only)
    slicer.mrmlScene.RemoveNode(volume)
    test.assertIsNone(parameters.volumeID)


def panelWithAQuickEngine(test, logic):
    """Choose, press, look at the nodes, press again and replace, edit, undo, leave and come back."""
    with openPanel(test, QuickEngine()) as widget:
        ui, segment = widget.ui, widget.panel.sections.segment
        volume = sampleVolume()
        ui.volumeSelector.setCurrentNode(volume)
        test.assertEqual(logic.getParameterNode().volumeID, volume.GetID())
        test.assertTrue(waitUntil(lambda: ui.runButton.enabled), segment.state.headline)
        ui.runButton.click()
        test.assertTrue(waitUntil(lambda: not segment.state.busy))
        test.assertEqual(segment.state.phase, "done", segment.state.detail)
        result = slicer.mrmlScene.GetNodeByID(segment.state.segmentation_id)
        test.assertEqual(ui.show3DButton.segmentationNode(), result)
        test.assertTrue(ui.resultTable.rowCount >= 1)

        ui.runButton.click()                    # there is a result already: the panel asks
        test.assertIsNotNone(segment.state.question)
        segment.answer("replace")
        test.assertTrue(waitUntil(lambda: not segment.state.busy))
        test.assertTrue(segment.state.undo_available)
        ui.undoButton.click()
        test.assertFalse(segment.state.undo_available)

        ui.editButton.click()
        test.assertTrue(widget.panel.sections.editor.isOpen)
        widget.exit()
        widget.enter()
        ui.closeEditorButton.click()
        test.assertFalse(widget.panel.sections.editor.isOpen)


def sceneClosedWhileRunning(test, logic):
    """Nothing is put into the scene that comes after."""
    with openPanel(test, QuickEngine(patient=True)) as widget:
        ui, segment = widget.ui, widget.panel.sections.segment
        ui.volumeSelector.setCurrentNode(sampleVolume())
        ui.runButton.click()
        test.assertTrue(waitUntil(lambda: segment.state.fraction > 0))
        slicer.mrmlScene.Clear(0)
        test.assertFalse(segment.state.busy)
        waitUntil(lambda: False, 0.2)
        test.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)


def sampleFromStartToEnd(test, logic):
    """The real engine and the model that ships, by script: the structures of the upper abdomen are found."""
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        test.skipTest("PyTorch is not installed in this Slicer: see the set-up page of HiEndSeg")
    volume, heard = sampleVolume(), []
    result = logic.segment(volume, device="cpu", only=["liver", "spleen"],
                           progress=lambda fraction, sentence: heard.append(fraction))
    segments = result.GetSegmentation()
    test.assertEqual([segments.GetNthSegmentID(n) for n in range(segments.GetNumberOfSegments())], ["spleen", "liver"])
    test.assertEqual(heard, sorted(heard))
    from HiEndSegLib.bridge.results import table_of
    from HiEndSegLib.bridge.tables import read_table

    volumes = {name: milliliters for name, milliliters, _mean in read_table(table_of(result))}
    test.assertGreater(volumes["Liver"], 500)
    test.assertGreater(volumes["Spleen"], 50)


def adaptWithAQuickEngine(test, logic):
    """Correct a result, compare, teach, stop in the middle, teach to the end; nothing is kept, nothing stays behind."""
    engine = QuickEngine()
    with openPanel(test, engine) as widget:
        ui, sections, volume = widget.ui, widget.panel.sections, sampleVolume(size=(32, 30, 16))
        adapt = sections.adapt
        ui.volumeSelector.setCurrentNode(volume)
        test.assertTrue(waitUntil(lambda: ui.runButton.enabled), sections.segment.state.headline)
        ui.runButton.click()
        test.assertTrue(waitUntil(lambda: not sections.segment.state.busy))
        result = slicer.mrmlScene.GetNodeByID(sections.segment.state.segmentation_id)
        test.assertEqual(ui.adaptSegmentationSelector.currentNode(), result)
        structure = result.GetSegmentation().GetNthSegmentID(0)
        correct(volume, result, structure, "Something else")
        ui.adaptSection.collapsed = False
        ui.adaptCompareButton.click()
        test.assertTrue(waitUntil(lambda: adapt.state.rows and not adapt.state.busy), adapt.state.headline)
        rows = {row.id: row for row in adapt.state.rows}
        test.assertTrue(rows[structure].checked)
        test.assertEqual(len([row for row in rows.values() if row.is_new]), 1)

        engine.patient = True
        ui.adaptButton.click()
        test.assertTrue(waitUntil(lambda: adapt.state.finish_available), adapt.state.headline)
        test.assertTrue(ui.adaptCurveBox.visible)
        ui.adaptFinishButton.click()
        test.assertTrue(waitUntil(lambda: not adapt.state.busy))
        test.assertEqual(adapt.state.phase, "done", adapt.state.detail)
        test.assertIsNone(adapt.state.result_key)
        test.assertTrue(ui.adaptTable.rowCount >= 1)
        slicer.mrmlScene.Clear(0)
        for kind in ("PlotView", "PlotChart", "PlotSeries", "Table", "Segmentation"):
            test.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass(f"vtkMRML{kind}Node"), 0, kind)
        ui.adaptSection.collapsed = True


def adaptFromStartToEnd(test, logic):
    """The real engine, by script: a structure that the model does not know, in a few steps; the version is deleted."""
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        test.skipTest("PyTorch is not installed in this Slicer: see the set-up page of HiEndSeg")
    from HiEndSegLib.models.registry import Registry

    from . import machine

    volume = sampleVolume()
    result = logic.segment(volume, device="cpu", only=["spleen"])
    correct(volume, result, "spleen", "Self test")
    with fewSteps(machine.engine(), 2):
        key = logic.adapt(volume, result, "Self test of HiEndSeg", structures=["self_test"], speed="quick",
                          device="cpu", keepAnyway=True)
    try:
        card = Registry().get(key)
        test.assertIn("self_test", [label.id for label in card.labels])
        test.assertTrue(card.is_version)
        again = logic.segment(volume, model=key, device="cpu", only=["self_test", "spleen"])
        test.assertIsNotNone(again.GetSegmentation().GetSegment("self_test"))
    finally:
        Registry().remove(key)
