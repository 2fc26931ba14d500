"""The set-up page, shown instead of the sections as long as packages are missing."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from .widgets import Connections, setText

#: How a step of the installation is marked.
_MARKS = {"waiting": "○", "running": "▶", "done": "✓", "failed": "✗"}


class SetupPage:
    """installer: the presenter's, which takes a folder of wheels. back: function that shows the sections again; report:
    function that gives the text for a bug report."""

    def __init__(self, ui, presenter, installer, back, report):
        self.ui, self.presenter, self._installer = ui, presenter, installer
        self._report = report
        self._connections = Connections(
            (ui.installButton, self.onInstall), (ui.setupAgainButton, presenter.look), (ui.setupBackButton, back),
            (ui.setupReportButton, self.copyReport), (ui.restartButton, self.onRestart),
            (ui.wheelsButton, self.onWheels))
        presenter.changed.connect(self.show)
        self.show()

    def close(self):
        self.presenter.changed.disconnect(self.show)
        self._connections.close()

    def onInstall(self):
        self._installer.wheels = None
        self.presenter.press()

    def onWheels(self):
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder of downloaded packages"))
        if folder:
            self._installer.wheels = folder
            self.presenter.press()

    def onRestart(self):
        slicer.util.restart()

    def copyReport(self):
        """Onto the clipboard; the status line says so, where there is one."""
        slicer.app.clipboard().setText(self._report())
        slicer.util.showStatusMessage(_("The report is on the clipboard; it names no patient and no folder."), 5000)

    def show(self):
        state, ui = self.presenter.state, self.ui
        setText(ui.setupHeadline, state.headline)
        setText(ui.setupDetail, state.detail)
        setText(ui.setupSteps, "\n".join(f"{_MARKS[step.state]} {step.text}" for step in state.steps))
        ui.offlineText.setPlainText(state.offline)
        ui.setupProgress.setVisible(state.busy)
        ui.setupProgress.setValue(int(1000 * state.fraction))
        if state.button_text:
            ui.installButton.setText(state.button_text)
        ui.installButton.setEnabled(state.button_enabled and not state.busy)
        for button in (ui.setupAgainButton, ui.setupBackButton, ui.wheelsButton):
            button.setEnabled(not state.busy)
        ui.setupBackButton.setVisible(not self.presenter.needed)
        ui.restartButton.setVisible(state.phase == "restart")
        self._showPackages(state)

    def _showPackages(self, state):
        rows = self.ui.setupList
        rows.setColumnCount(3)
        rows.setHeaderLabels([_("Package"), _("Installed"), _("What for")])
        rows.clear()
        for row in state.packages:
            item = qt.QTreeWidgetItem(rows)
            for column, text in enumerate((row.requirement, row.installed or _("missing"), row.why)):
                item.setText(column, text)
                item.setToolTip(column, text)
        for column in (0, 1):
            rows.resizeColumnToContents(column)
        rows.setFixedHeight(rows.header().sizeHint.height() + 2 * rows.frameWidth
                            + max(1, len(state.packages)) * rows.sizeHintForRow(0))
