"""The Models section: add, verify, look at and delete models; a `ModelsPresenter`'s state in widgets."""

from __future__ import annotations

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
                   (ui.deleteButton, self.onDelete))
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

    def show(self):
        state, ui = self.presenter.state, self.ui
        for button in self._buttons:
            button.setEnabled(not state.busy)
        setText(ui.modelsSentence, state.headline)
        setText(ui.modelProblems, "\n".join(state.problems))
        self._question.show(state.question)
