"""`Panel`: the set-up page and the sections, the timer that moves them, and what Slicer tells them.

As long as packages are missing the set-up page is all there is; the sections are made when they are not.
"""

from __future__ import annotations

import logging

import qt
import slicer
from HiEndSegLib.desktop.installer import SlicerInstaller
from HiEndSegLib.presenter.report import together
from HiEndSegLib.presenter.setup import SetupPresenter
from slicer.i18n import tr as _

from . import machine
from .settings import Settings
from .setup import SetupPage
from .widgets import Connections

#: Milliseconds between two looks at the engine.
TICK = 40


class Panel:
    """ui: the form's widgets. logic: the module's. parent: the module's widget. resource: paths of shipped files."""

    def __init__(self, ui, logic, parent, resource):
        self.ui, self.logic = ui, logic
        self.settings, self.sections = Settings(), None
        self._entered = self._setupAsked = False
        # bound now: once the module is loaded again, the name `machine` means another engine
        self._engine, self._renewEngine, self._closeEngine = machine.engine, machine.renewEngine, machine.closeEngine
        installer = SlicerInstaller(slicer=slicer)
        with open(resource("requirements.txt"), encoding="utf-8") as requirements:
            self.setup = SetupPresenter(installer=installer, requirements=requirements.read(), engine=self._engine(),
                                        settings=self.settings, renew_engine=self._renewEngine, python="PythonSlicer",
                                        host=f"Slicer {slicer.app.applicationVersion}")
        self.setup.changed.connect(self.showPages)
        self.setup.done.connect(self.onInstalled)
        self.setupPage = SetupPage(ui, self.setup, installer, self.onSetupLeft, self.report)
        self._connections = Connections((ui.showSetupButton, self.onSetupAsked), (ui.sampleButton, self.onSample),
                                        (ui.reportButton, self.setupPage.copyReport))
        self._timer = qt.QTimer(parent)
        self._timer.setInterval(TICK)
        self._timer.connect("timeout()", self.tick)
        ui.editSection.setVisible(False)
        self._makeSections()
        self.showPages()

    # ---------------------------------------------------------------------------------------------- Slicer says

    def enter(self):
        self._entered = True
        self._timer.start()
        self.setup.look()
        if self.sections is not None:
            self.sections.enter()

    def exit(self):
        """The timer goes on as long as something runs."""
        self._entered = False
        if self.sections is not None:
            self.sections.exit()

    def close(self):
        """Reload or the end of Slicer, which may be half gone: no step stops the others."""
        for step in (self._timer.stop, self._disconnect, self._closeSections, self.setupPage.close, self.setup.close,
                     self._closeEngine):
            try:
                step()
            except Exception:               # noqa: BLE001
                logging.exception("HiEndSeg: closing the panel")

    def tick(self):
        """Let everybody look at what they wait for; stop when nobody does and nobody looks."""
        self.setup.tick()
        if self.sections is not None:
            self.sections.tick()
        busy = self.setup.state.busy or (self.sections is not None and self.sections.busy)
        if not self._entered and not busy:
            self._timer.stop()

    # ---------------------------------------------------------------------------------------------- pages

    def showPages(self):
        """Set-up page or sections."""
        setup = self._setupAsked or self.sections is None or self.sections.needsSetup or self.setup.state.busy
        self.ui.setupPage.setVisible(setup)
        self.ui.sections.setVisible(not setup)

    def onSetupAsked(self):
        self._setupAsked = True
        self.setup.look()
        self.showPages()

    def onSetupLeft(self):
        self._setupAsked = False
        self._makeSections()
        self.showPages()

    def onInstalled(self):
        """A check of the installation has passed: everything is made anew, on an engine that sees it."""
        self._setupAsked = False
        self._closeSections()
        self._makeSections()
        self.showPages()

    def onOffer(self, action):
        """What an offer of the Segment section does outside of it."""
        if action == "setup":
            self.onSetupAsked()

    def onSample(self):
        with slicer.util.tryWithErrorDisplay(_("The sample could not be loaded."), waitCursor=True):
            from HiEndSegLib.desktop.samples import load_sample

            self.sections.segment.set_volume(load_sample(slicer))

    def report(self):
        """Text for a bug report: versions, devices, messages; no names, no folders."""
        if self.sections is None:
            return self.setup.report()
        return self.setup.report(**together(self.sections.segment.report_facts(), self.sections.adapt.report_facts()))

    # ---------------------------------------------------------------------------------------------- inside

    def _makeSections(self):
        if self.sections is None and not self.setup.needed:
            from .sections import Sections

            self.sections = Sections(self.ui, self.logic, self._engine(), self.settings, lambda: self._entered,
                                     self.onOffer, self.showPages)
            if self._entered:
                self.sections.enter()

    def _closeSections(self):
        if self.sections is not None:
            sections, self.sections = self.sections, None
            sections.close()

    def _disconnect(self):
        self._timer.disconnect("timeout()", self.tick)
        self._connections.close()
