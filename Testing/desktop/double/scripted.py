"""Scripted modules: the base classes (`slicer.ScriptedLoadableModule`) and what the application does with them.

Behaves as Slicer's, where a module can tell; the genuine file belongs to Slicer and is used outside this project.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import unittest

import slicer
from PySide6 import QtCore, QtWidgets

from .mrml_widgets import qMRMLWidget


class ScriptedLoadableModule:
    def __init__(self, parent):
        super().__init__()
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.categories, parent.dependencies = "", [], []
        parent.contributors, parent.helpText, parent.acknowledgementText = [], "", ""
        if not hasattr(slicer, "selfTests"):
            slicer.selfTests = {}
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, name):
        return os.path.join(os.path.dirname(self.parent.path), "Resources", name)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        return f'<p>For more information see the <a href="{self.moduleName}">online documentation</a>.</p>'

    def runTest(self, msec=100, **keywords):
        case = getattr(sys.modules[self.__module__], self.moduleName + "Test")()
        case.messageDelay = msec
        case.runTest(**keywords)


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        if parent is None:
            self.parent = qMRMLWidget()
            self.parent.setLayout(QtWidgets.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        else:
            self.parent = parent
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, name):
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", name)

    def setup(self):
        if self.developerMode:
            self.reloadButton = QtWidgets.QPushButton("Reload")
            self.reloadButton.connect("clicked()", self.onReload)
            self.layout.addWidget(self.reloadButton)

    def cleanup(self):
        pass

    def onReload(self):
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, name):
        if name == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)",
                                                  self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.AddNode(self.createParameterNode())
        if node.GetAttribute("ModuleName") != self.moduleName:
            node.SetAttribute("ModuleName", self.moduleName)
        return node

    def createParameterNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        super(unittest.TestCase, self).__init__()

    def delayDisplay(self, message, requestedDelay=None, msec=None):
        slicer.util.delayDisplay(message, 50)

    def runTest(self):
        """As Reload-and-Test does: every method with "test" in its name, setUp and tearDown around each."""
        for name in sorted(dir(self)):
            if "test" in name.lower() and name != "runTest" and callable(getattr(self, name)) \
                    and not hasattr(unittest.TestCase, name):
                logging.info("%s", name)
                self.setUp()
                try:
                    getattr(self, name)()
                finally:
                    self.tearDown()


class qSlicerScriptedLoadableModule(QtCore.QObject):
    """What a module's class gets as `parent`, and what `slicer.modules.<name>` is."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)
        self.icon = None
        self._widget = None

    def start(self):
        """Import the module's file and make its first class, as Slicer does at start-up."""
        name = os.path.basename(self.path)[:-3]
        self.setObjectName(name)
        folder = os.path.dirname(self.path)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(name, self.path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        self.self_ = getattr(module, name)(self)
        setattr(slicer.modules, name.lower(), self)
        setattr(slicer.modules, name + "Instance", self.self_)
        return self

    def widgetRepresentation(self):
        """The panel, made when it is asked for the first time."""
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(self.objectName)
            self._widget.begin()
        return self._widget

    def unload(self):
        """Slicer ends or the module is removed: the panel cleans up and goes."""
        slicer.app.moduleManager().aboutToUnload(self.objectName)
        if self._widget is not None:
            widget, self._widget = self._widget, None
            widget.delete()


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The parent of a module's widget class: calls its setup, enter and exit."""

    def __init__(self, moduleName):
        super().__init__()
        self._moduleName = moduleName
        self.isEntered = False
        QtWidgets.QVBoxLayout(self)

    def begin(self):
        self.setMRMLScene(slicer.mrmlScene)
        self._python = getattr(sys.modules[self._moduleName], self._moduleName + "Widget")(self)
        setattr(slicer.modules, self._moduleName + "Widget", self._python)
        self._python.setup()

    def self(self):
        return self._python

    def enter(self):
        self.isEntered = True
        self._python.enter()

    def exit(self):
        self.isEntered = False
        self._python.exit()

    def reload(self):
        """What Slicer does after it loaded the file again: a new widget object, set up, and entered if it was."""
        self.begin()
        if self.isEntered:
            self._python.enter()


OFFERED = (qSlicerScriptedLoadableModule, qSlicerScriptedLoadableModuleWidget)
