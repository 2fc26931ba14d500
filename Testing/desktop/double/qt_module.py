"""The module `qt`: all of Qt in one flat name space, without what PythonQt lacks or what one of Qt 5 and 6 lacks."""

from __future__ import annotations

import types
import xml.etree.ElementTree as ElementTree

from PySide6 import QtCore

from . import pythonqt

#: Names that must not be used, and why.
FORBIDDEN = {
    "Signal": "a Python signal crashes PythonQt; use a list of callables",
    "Slot": "PythonQt has none",
    "Property": "PythonQt has none",
    "QRegExp": "gone in Qt 6",
    "QTextCodec": "gone in Qt 6",
    "QDesktopWidget": "gone in Qt 6",
    "QRegularExpression": "not wrapped by every PythonQt; use Python's re",
}


class QtModule(types.ModuleType):
    def __getattr__(self, name):
        if name in FORBIDDEN:
            raise AttributeError(f"qt.{name}: {FORBIDDEN[name]}")
        for module in pythonqt.MODULES:
            found = getattr(module, name, None)
            if found is not None:
                if not (isinstance(found, type) and name.startswith("Q")):
                    break                      # PySide's own helpers are not part of PythonQt
                setattr(self, name, found)
                return found
        raise AttributeError(f"PythonQt's qt has no {name}")


def make() -> QtModule:
    module = QtModule("qt")
    module.QUiLoader = UiLoader
    module.QFileDialog = None                  # dialogs.py fills these in
    return module


class UiLoader:
    """`qt.QUiLoader()`: loads a form with the stand-in's widgets, refuses what the form names and a widget lacks.

    PySide's loader knows nothing of signals written in Python, so `mrmlSceneChanged` connections are made here.
    """

    _made = None

    def load(self, file):
        loader = self._loader()
        text = bytes(file.readAll().data())
        buffer = QtCore.QBuffer()
        buffer.setData(text)
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        previous = QtCore.qInstallMessageHandler(lambda *_: None)      # it complains of the scene connections
        try:
            widget = loader.load(buffer)
        finally:
            QtCore.qInstallMessageHandler(previous)
        if widget is None:
            return None
        form = ElementTree.fromstring(text)
        named = {w.objectName: w for w in [widget, *widget.findChildren(QtCore.QObject)] if w.objectName}
        self._check_form(form, named)
        self._connect_scene(form, named)
        return widget

    @classmethod
    def _loader(cls):
        """One for the process: PySide does not survive the collection of a loader with widgets of Python."""
        if cls._made is None:
            from . import ctk_module, mrml_widgets, segmentation_widgets

            cls._made = pythonqt.QtUiTools.QUiLoader()
            for widget in (*ctk_module.OFFERED, *mrml_widgets.OFFERED, *segmentation_widgets.OFFERED):
                if issubclass(widget, pythonqt.QtWidgets.QWidget):
                    cls._made.registerCustomWidget(widget)
        return cls._made

    @staticmethod
    def _check_form(form, named) -> None:
        for element in form.iter("widget"):
            name, wanted = element.get("name"), element.get("class")
            widget = named.get(name)
            if widget is None or (type(widget).__name__ != wanted and wanted not in
                                  [base.__name__ for base in type(widget).__mro__]):
                raise ValueError(f"{wanted} {name!r} of the form could not be made")
            unknown = [bytes(p.data()).decode() for p in widget.dynamicPropertyNames()]
            unknown = [p for p in unknown if not p.startswith("_") and p != "SlicerParameterName"]
            if unknown:
                raise ValueError(f"{wanted} {name!r} has no property {', '.join(unknown)}")

    @staticmethod
    def _connect_scene(form, named) -> None:
        for connection in form.iter("connection"):
            sender, signal, receiver, slot = (connection.findtext(part) for part in
                                              ("sender", "signal", "receiver", "slot"))
            for name in (sender, receiver):
                if name not in named:
                    raise ValueError(f"the form connects {name!r}, which it does not hold")
            if signal == "mrmlSceneChanged(vtkMRMLScene*)":
                if slot != "setMRMLScene(vtkMRMLScene*)" or not hasattr(named[receiver], "setMRMLScene"):
                    raise ValueError(f"{receiver!r} has no slot {slot}")
                named[sender].connect(signal, named[receiver].setMRMLScene)
            elif named[sender].metaObject().indexOfSignal(signal) < 0 or \
                    named[receiver].metaObject().indexOfMethod(slot) < 0:
                raise ValueError(f"{sender}.{signal} cannot be connected to {receiver}.{slot}")
