"""The Models section: add, verify, look at, export and delete models; a `ModelsPresenter`'s state in widgets."""

from __future__ import annotations

import os

import qt
import slicer
from slicer.i18n import tr as _

from .widgets import Connections, QuestionBox, setText


class ModelsSection:
    """chosen: function that gives the id of the model that is chosen in the Segment section."""

    def __init__(self, ui, presenter, chosen):
        self.ui, self.presenter, self._chosen = ui, presenter, chosen
        self._question = QuestionBox(ui.modelsQuestionBox, ui.modelsQuestionText, ui.modelsQuestionButtonsLayout,
                                     presenter.answer)
        buttons = ((ui.addFileButton, self.onAddFile), (ui.addFolderButton, self.onAddFolder),
                   (ui.verifyButton, self.onVerify), (ui.openFolderButton, self.onOpenFolder),
                   (ui.deleteButton, self.onDelete), (ui.exportButton, self.onExport),
                   (ui.exportWholeButton, self.onExportWhole),
                   (ui.forgetButton, self.onForget))
        self._buttons, self._connections = [button for button, _slot in buttons], Connections(*buttons)
        presenter.changed.connect(self.show)
        self.show()

    def close(self):
        self.presenter.changed.disconnect(self.show)
        self._connections.close()
        self._question.clear()

    def onAddFile(self):
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Add a model from a file"), "",
            _("Models and weights") + " (*.zip card.json *.safetensors *.pt *.pth *.ckpt *.bin);;" + _("All files")
            + " (*)")
        if path:
            self.presenter.add(path)

    def onAddFolder(self):
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Add a model from its folder"))
        if path:
            self.presenter.add(path)

    def onVerify(self):
        if self._chosen():
            self.presenter.verify(self._chosen())

    def onOpenFolder(self):
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(self.presenter.folder(self._chosen())))

    def onDelete(self):
        if self._chosen():
            self.presenter.delete(self._chosen())

    def onExport(self):
        self._export(False)

    def onExportWhole(self):
        self._export(True)

    def _export(self, whole):
        path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), _("Export the model into one file"),
                                              f"{self._chosen()}.zip", _("Models") + " (*.zip)") \
            if self._chosen() else ""
        if path and not path.lower().endswith(".zip"):
            path += ".zip"              # not the file that the dialog asked about
            if os.path.exists(path) and not slicer.util.confirmOkCancelDisplay(
                    _("{file} is there already. Replace it?").format(file=os.path.basename(path))):
                return
        if path:
            self.presenter.export(self._chosen(), path, whole=whole)

    def onForget(self):
        if self._chosen():
            self.presenter.forget_teaching(self._chosen())

    def show(self):
        state, ui = self.presenter.state, self.ui
        for button in self._buttons:
            button.setEnabled(not state.busy)
        chosen = next((row for row in state.rows if row.id == self._chosen()), None)
        ui.exportWholeButton.setVisible(chosen is not None and bool(chosen.parent))
        ui.forgetButton.setVisible(chosen is not None and chosen.teaching)
        setText(ui.modelsSentence, state.headline)
        setText(ui.modelProblems, "\n".join(state.problems))
        self._question.show(state.question)
