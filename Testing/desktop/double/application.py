"""`slicer.app`, `slicer.mrmlScene` and `slicer.modules`: a scene with its real logics, an application around it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import types
from pathlib import Path

import vtk
from PySide6 import QtCore, QtWidgets

from . import dialogs, plot_widgets, scripted

Property, Signal = QtCore.Property, QtCore.Signal


class ModuleManager(QtCore.QObject):
    SIGNALS = {"moduleAboutToBeUnloaded(QString)": "_aboutToBeUnloaded"}
    _aboutToBeUnloaded = Signal(str)

    def aboutToUnload(self, name):
        self._aboutToBeUnloaded.emit(name)

    def module(self, name):
        return getattr(sys.modules["slicer"].modules, name.lower(), None)


class ExtensionsManagerModel(QtCore.QObject):
    """Knows the name of one extension and records that it was asked for."""

    def __init__(self):
        super().__init__()
        self.installed, self.requested, self.interactive = [], [], True

    def isExtensionInstalled(self, name):
        return name in self.installed

    def installExtensionFromServer(self, name, *_):
        self.requested.append(name)
        return True


class qSlicerApplication(QtWidgets.QApplication):
    """The application object. `testing`, `hasLayout` are switches for tests."""

    SIGNALS = {"startupCompleted()": "_startupCompleted"}
    _startupCompleted = Signal()
    applicationName = "Slicer"
    applicationVersion = "5.12.0"
    revision = repositoryRevision = "stand-in"
    majorVersion, minorVersion = 5, 12

    def begin(self, folder):
        self.setStyle("Fusion")
        self.testing = False
        self.temporaryPath = str(folder / "temporary")
        self._modules, self._extensions = ModuleManager(), ExtensionsManagerModel()
        self.restarts = 0

    def testingEnabled(self):
        return self.testing

    def commandOptions(self):
        return types.SimpleNamespace(noMainWindow=self.mainWindow is None, testingEnabled=self.testing)

    def moduleManager(self):
        return self._modules

    def extensionsManagerModel(self):
        return self._extensions

    def layoutManager(self):
        """None: without a main window there is none, and the panel must do without."""
        return None

    def mrmlScene(self):
        return sys.modules["slicer"].mrmlScene

    def userSettings(self):
        return QtCore.QSettings()

    def moduleDocumentationUrl(self, name):
        return f"https://example.org/{name}"

    def restart(self):
        self.restarts += 1

    def finishStart(self):
        self._startupCompleted.emit()

    mainWindow = None


class qSlicerMainWindow(QtWidgets.QMainWindow):
    def __init__(self):
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.selected = None

    def moduleSelector(self):
        return self

    def selectModule(self, name):
        """Leave the module that is shown, show this one."""
        slicer = sys.modules["slicer"]
        for known, call in ((self.selected, "exit"), (name, "enter")):
            module = getattr(slicer.modules, known.lower(), None) if known else None
            if module is not None and hasattr(module, "widgetRepresentation"):
                getattr(module.widgetRepresentation(), call)()
        self.selected = name

    @property
    def selectedModule(self):
        return self.selected


def start(slicer, folder):
    """Everything that is there before the first module is loaded."""
    folder = Path(folder)
    (folder / "temporary").mkdir(parents=True, exist_ok=True)
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, str(folder / "settings"))
    QtCore.QCoreApplication.setOrganizationName("stand-in")
    QtCore.QCoreApplication.setApplicationName("Slicer")
    application = qSlicerApplication(["Slicer"])
    application.begin(folder)
    _launcher(folder)
    slicer.app = application
    slicer.modules = types.SimpleNamespace()
    module = types.ModuleType("slicer.ScriptedLoadableModule")
    for name in ("ScriptedLoadableModule", "ScriptedLoadableModuleWidget", "ScriptedLoadableModuleLogic",
                 "ScriptedLoadableModuleTest"):
        setattr(module, name, getattr(scripted, name))
    module.__all__ = list(name for name in vars(module) if name.startswith("Scripted"))
    sys.modules["slicer.ScriptedLoadableModule"] = slicer.ScriptedLoadableModule = module
    _scene(slicer)
    slicer.util.loadVolume = lambda path, properties={}: _load_volume(slicer, path, properties)
    return application


def _launcher(folder) -> None:
    """PythonSlicer on the PATH: as Slicer's, a launcher whose child does the work."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "PythonSlicer"
    program.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n', encoding="utf-8")
    program.chmod(0o755)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    assert shutil.which("PythonSlicer") == str(program)


def _scene(slicer) -> None:
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetMRMLScene(scene)
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())

    def register(cls, name):
        made = cls()
        made.SetMRMLScene(scene)
        made.SetMRMLApplicationLogic(logic)
        logic.SetModuleLogic(name, made)
        setattr(slicer.modules, name.lower(), types.SimpleNamespace(logic=lambda: made))
        return made
    register(slicer.vtkMRMLColorLogic, "Colors")
    logic.GetColorLogic().SetMRMLScene(scene)
    logic.GetColorLogic().AddDefaultColorNodes()
    register(slicer.vtkSlicerVolumesLogic, "Volumes")
    vtk.vtkObject.GlobalWarningDisplayOff()          # the lists that come with Slicer are not in the wheel
    register(slicer.vtkSlicerTerminologiesModuleLogic, "Terminologies")
    vtk.vtkObject.GlobalWarningDisplayOn()
    register(slicer.vtkSlicerSegmentationsModuleLogic, "Segmentations")
    register(slicer.vtkSlicerSequencesLogic, "Sequences")
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    slicer.mrmlScene = scene
    slicer.app.logic = logic
    _plugins(slicer, scene)
    plot_widgets.watch_layout(scene)


def _plugins(slicer, scene) -> None:
    """What Slicer's subject hierarchy plugins do: an item for every node that a person sees."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def added(caller, event, node):
        nonlocal hierarchy
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        seen = any(node.IsA(kind) for kind in ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLTableNode",
                                               "vtkMRMLTransformNode", "vtkMRMLMarkupsNode", "vtkMRMLSequenceNode"))
        if seen and not node.GetHideFromEditors() and hierarchy is not None and not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def removed(caller, event, node):
        item = hierarchy.GetItemByDataNode(node) if hierarchy is not None and node is not hierarchy else 0
        if item:
            hierarchy.RemoveItem(item, False, False)
    scene.AddObserver(scene.NodeAddedEvent, added)
    scene.AddObserver(scene.NodeRemovedEvent, removed)


def _load_volume(slicer, path, properties):
    if not os.path.isfile(path):
        raise RuntimeError(f"Failed to load node from file: {path}")
    node = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), properties.get("name", Path(path).stem))
    logging.info("loaded a volume")
    return node


def load_module(path):
    """Load a scripted module as Slicer does at its start; returns `slicer.modules.<name>`."""
    module = scripted.qSlicerScriptedLoadableModule(path).start()
    sys.modules["slicer"].app.finishStart()
    return module


def show_main_window():
    """A main window with a status bar, for code that asks for one. Close it with `hide_main_window`."""
    application = sys.modules["slicer"].app
    if application.mainWindow is None:
        application.mainWindow = qSlicerMainWindow()
    return application.mainWindow


def hide_main_window():
    application = sys.modules["slicer"].app
    if application.mainWindow is not None:
        application.mainWindow.delete()
        application.mainWindow = None
    dialogs.reset()
