"""`Desk`: the module's panel in the stand-in, used by clicks and looked at; shared by the tests and `show.py`."""

from __future__ import annotations

import time
from pathlib import Path

from double import application, failures

MODULE = Path(__file__).resolve().parents[2] / "HiEndSeg" / "HiEndSeg.py"


class Desk:
    """One Slicer with the module open. pictures: a folder for screenshots, or None. patience: seconds for a run."""

    patience, longest = 120.0, 0.0

    def __init__(self, pictures=None):
        import slicer

        self.slicer, self.app, self.scene = slicer, slicer.app, slicer.mrmlScene
        self.pictures = None if pictures is None else Path(pictures)
        self.module = getattr(slicer.modules, "hiendseg", None) or application.load_module(MODULE)
        self.widget = self.module.widgetRepresentation()
        self.widget.resize(430, 980)
        self.widget.show()
        self.logic = self.widget.self().logic

    @property
    def panel(self):
        return self.widget.self().panel

    @property
    def ui(self):
        return self.widget.self().ui

    @property
    def segment(self):
        return self.panel.sections.segment

    @property
    def state(self):
        return self.segment.state

    @property
    def setup_over(self):
        """Whether an installation has come to its end, good or bad."""
        return self.panel.setup.state.phase in ("complete", "failed", "restart")

    def enter(self):
        self.widget.enter()

    def exit(self):
        self.widget.exit()

    def begin(self):
        """An entered panel on an empty scene, nothing running, nothing remembered of an earlier result."""
        self.scene.Clear(0)
        self.longest = 0.0
        self.enter()
        if self.panel.sections is not None:
            self.segment.set_device("cpu")
            self.segment.set_filter("")
            self.segment.set_model("torso-ct-tiny")
            self.segment.select_all()

    def end(self):
        if self.panel is not None and self.panel.sections is not None and self.state.busy:
            self.segment.cancel()
            self.until(lambda: not self.state.busy)
        self.exit()
        self.scene.Clear(0)

    def until(self, condition, seconds=None):
        """Let the application work until `condition()` holds; whether it came to that.

        How long (of this processor's time) a turn took at most since `begin()` is kept in `longest`: slices can be
        scrolled in between.
        """
        deadline = time.monotonic() + (seconds or self.patience)
        while not condition():
            if time.monotonic() > deadline:
                return False
            began = time.process_time()
            self.app.processEvents()
            self.longest = max(self.longest, time.process_time() - began)
            time.sleep(0.005)
        return True

    def choose(self, volume):
        self.ui.volumeSelector.setCurrentNode(volume)
        assert self.until(lambda: self.ui.runButton.enabled), self.state.headline

    def run(self, seconds=None, answer=None):
        """Press Segment and wait for the end; returns the segmentation node, or None where there is none."""
        before = self.state.segmentation_id
        self.ui.runButton.click()
        if answer is not None:
            assert self.state.question is not None, self.state.headline
            self.press(self.ui.questionBox, next(c.text for c in self.state.question.choices if c.id == answer))
        assert self.until(lambda: not self.state.busy, seconds), self.state.headline
        if self.state.phase != "done":
            assert self.state.segmentation_id == before
            return None
        return self.node(self.state.segmentation_id)

    def node(self, node_id):
        return self.scene.GetNodeByID(node_id) if node_id else None

    def press(self, box, text):
        """Click the button of this text inside a box, as a person finds it."""
        import qt

        self.app.processEvents()        # a button is shown by the layout that it was put into, a turn later
        found = [w for w in box.findChildren(qt.QPushButton) if w.text == text and not w.isHidden()]
        assert len(found) == 1, f"{len(found)} buttons say {text!r}"
        found[0].click()

    def count(self, class_name):
        return self.scene.GetNumberOfNodesByClass(class_name)

    def picture(self, name, volume=None, segmentation=None):
        """Keep what the panel shows, with the volume's slices beside it; draws the panel in any case."""
        for _pass in range(2):          # as Slicer's scroll area does: as high as the texts need at this width
            self.app.processEvents()
            self.widget.resize(430, max(700, self.widget.heightForWidth(430)))
        self.app.processEvents()
        shot = self.widget.grab()
        assert shot.width() > 100 and shot.height() > 100
        if self.pictures is None:
            return
        self.pictures.mkdir(parents=True, exist_ok=True)
        from slices import beside

        sections = None if self.panel is None else self.panel.sections
        shown = None if sections is None else sections.attention.show_again
        beside(shot, volume, segmentation, shown).save(str(self.pictures / f"{name}.png"))


def hidden_failures():
    """What was printed and swallowed since the last look."""
    return failures.taken()
