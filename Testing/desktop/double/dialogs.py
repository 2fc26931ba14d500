"""Dialogs are recorded, never shown. One that nobody has an answer for raises: it would have waited for a person."""

from __future__ import annotations

import sys

from PySide6 import QtCore, QtGui, QtWidgets

from . import failures

#: (kind, text) of every dialog, in order.
shown: list[tuple[str, str]] = []
#: What the next dialogs answer, in order.
_answers: list = []


class Unexpected(AssertionError):
    """A dialog came up that the test did not say anything about."""


def answer(*values) -> None:
    """The next dialogs' answers: a button for a message box, a path for a file dialog."""
    _answers.extend(values)


def reset() -> None:
    shown.clear()
    _answers.clear()


def unused_answers() -> list:
    return list(_answers)


def _ask(kind: str, text: str):
    shown.append((kind, text))
    if not _answers:
        error = Unexpected(f"{kind}: {text}")
        failures.record(error)
        raise error
    return _answers.pop(0)


class ctkMessageBox(QtWidgets.QMessageBox):
    """What `slicer.util`'s displays show; it also knows "do not show this again"."""

    _stands_for_native = True

    def _nothing(self, value=None):
        return None

    dontShowAgainSettingsKey = QtCore.Property(str, lambda self: "", _nothing)
    dontShowAgainVisible = QtCore.Property(bool, lambda self: False, _nothing)

    def exec_(self):
        return _ask("message", self.text)

    exec = exec_


class MessageBox(QtWidgets.QMessageBox):
    _stands_for_native = True

    def exec_(self):
        return _ask("message", self.text)

    exec = exec_

    @staticmethod
    def question(parent, title, text, *buttons):
        return _ask("question", text)

    @staticmethod
    def information(parent, title, text, *buttons):
        return _ask("information", text)

    warning = critical = information


class FileDialog(QtWidgets.QFileDialog):
    """PythonQt's static methods return the path alone, not PySide's pair."""

    _stands_for_native = True

    @staticmethod
    def getOpenFileName(parent=None, caption="", folder="", filter="", *rest):
        return _ask("open file", caption)

    @staticmethod
    def getExistingDirectory(parent=None, caption="", folder="", *rest):
        return _ask("folder", caption)

    @staticmethod
    def getSaveFileName(parent=None, caption="", folder="", filter="", *rest):
        return _ask("save file", caption)

    def exec_(self):
        return _ask("file dialog", self.windowTitle)

    exec = exec_


class DesktopServices(QtGui.QDesktopServices):
    opened: list[str] = []

    @staticmethod
    def openUrl(url):
        DesktopServices.opened.append(url.toString())
        return True


class InputDialog(QtWidgets.QInputDialog):
    _stands_for_native = True

    @staticmethod
    def getText(parent, title, label, *rest):
        return _ask("text", label)

    @staticmethod
    def getItem(parent, title, label, items, *rest):
        return _ask("item", label)


def install() -> None:
    qt, ctk = sys.modules["qt"], sys.modules["ctk"]
    qt.QMessageBox, qt.QFileDialog, qt.QDesktopServices = MessageBox, FileDialog, DesktopServices
    qt.QInputDialog = InputDialog
    ctk.ctkMessageBox = ctkMessageBox
