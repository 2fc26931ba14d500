"""First use: the set-up page as long as packages are missing, the installation by Slicer's means (recorded, not done),
and what Slicer itself does with the module: reload, self test, the end."""

from __future__ import annotations

import importlib.metadata
import sys
import unittest

import pytest
from double import packages, pythonqt


@pytest.fixture
def missing(monkeypatch):
    """Packages that are missing for the while: a set to change. PyTorch to begin with."""
    gone, version = {"torch"}, importlib.metadata.version

    def found(name):
        if name in gone:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)
    monkeypatch.setattr(importlib.metadata, "version", found)
    return gone


@pytest.fixture
def bareDesk(wholeDesk, missing):
    """The panel of a Slicer where PyTorch is missing; a whole one afterwards."""
    wholeDesk.exit()
    wholeDesk.widget.self().onReload()
    wholeDesk.enter()
    wholeDesk.app.processEvents()               # a new panel is shown a turn later
    yield wholeDesk
    missing.clear()
    wholeDesk.exit()
    wholeDesk.widget.self().onReload()
    packages.slicer_version(wholeDesk.slicer, "5.12")
    packages.pytorch_extension(True)


def installs(name, missing):
    """In the place of what installs in Slicer: records that it was asked, and counts as done at once."""
    def act(*arguments, **keywords):
        packages.asked.append((name, arguments))
        missing.discard(name)
        return object()
    return act


def test_the_page_says_what_is_missing_before_anything_is_fetched(bareDesk, missing):
    desk = bareDesk
    assert desk.ui.setupPage.visible and not desk.ui.sections.visible and desk.panel.sections is None
    assert "torch" in desk.ui.setupHeadline.text.lower() and desk.ui.installButton.text == "Install"
    assert "download" in desk.ui.setupDetail.text and "never leave" in desk.ui.setupDetail.text
    rows = [desk.ui.setupList.topLevelItem(n) for n in range(desk.ui.setupList.topLevelItemCount)]
    assert rows[0].text(0).startswith("torch") and "missing" in rows[0].text(1)
    assert "--no-index" in desk.ui.offlineText.toPlainText()
    assert packages.asked == [] and not desk.ui.setupBackButton.visible
    desk.picture("no-torch")


def test_installing_goes_through_the_pytorch_extension_and_ends_with_the_sections(bareDesk, missing, monkeypatch):
    desk = bareDesk
    missing.add("safetensors")
    desk.ui.setupAgainButton.click()
    monkeypatch.setattr(packages.PyTorchUtilsLogic, "installTorch", installs("torch", missing))
    monkeypatch.setattr(desk.slicer.packaging, "pip_ensure", installs("safetensors", missing))
    desk.ui.installButton.click()
    assert desk.until(lambda: desk.setup_over, 120), desk.ui.setupHeadline.text
    assert [name for name, _arguments in packages.asked] == ["torch", "safetensors"]
    assert desk.panel.setup.state.phase == "complete", desk.panel.setup.state.detail
    assert desk.panel.setup.state.sentences, "every device was tried"
    assert desk.ui.sections.visible and not desk.ui.setupPage.visible
    assert desk.until(lambda: desk.state.device_sentence and "Looking" not in desk.state.device_sentence)


def test_an_installation_that_fails_says_why(bareDesk, missing, monkeypatch):
    def fails(*arguments, **keywords):
        raise OSError(28, "No space left on device")
    desk = bareDesk
    monkeypatch.setattr(packages.PyTorchUtilsLogic, "installTorch", fails)
    desk.ui.installButton.click()
    assert desk.until(lambda: desk.setup_over)
    assert desk.panel.setup.state.phase == "failed" and "disk is full" in desk.ui.setupDetail.text
    assert desk.ui.installButton.enabled
    desk.picture("setup-failed")


def test_without_the_pytorch_extension_it_is_installed_first_and_slicer_restarts(bareDesk, missing):
    desk = bareDesk
    packages.pytorch_extension(False)
    desk.ui.installButton.click()
    assert desk.until(lambda: desk.setup_over)
    assert desk.app.extensionsManagerModel().requested == ["PyTorch"]
    assert desk.panel.setup.state.phase == "restart" and desk.ui.restartButton.visible
    desk.picture("setup-restart")


def test_on_slicer_5_10_pip_is_used_directly(bareDesk, missing, monkeypatch):
    desk = bareDesk
    missing.clear()
    missing.add("safetensors")
    packages.slicer_version(desk.slicer, "5.10")
    monkeypatch.setattr(desk.slicer.util, "pip_install", installs("safetensors", missing))
    desk.ui.setupAgainButton.click()
    desk.ui.installButton.click()
    assert desk.until(lambda: desk.setup_over, 120)
    assert packages.asked == [("safetensors", (["safetensors>=0.4"],))]
    assert desk.ui.sections.visible


def test_the_page_can_be_opened_and_left_later(desk):
    desk.ui.helpSection.collapsed = False
    desk.ui.showSetupButton.click()
    assert desk.ui.setupPage.visible and desk.ui.installButton.text == "Repair"
    desk.picture("set-up")
    desk.ui.setupBackButton.click()
    assert desk.ui.sections.visible and not desk.ui.setupPage.visible
    desk.ui.helpSection.collapsed = True


def test_repair_makes_everything_anew_on_another_engine(desk):
    from HiEndSegPanel import machine

    before, engine = desk.panel.sections, machine.engine()
    desk.ui.showSetupButton.click()
    desk.ui.installButton.click()
    assert desk.until(lambda: desk.setup_over, 120) and desk.panel.setup.state.phase == "complete"
    assert ("pip_install" in [name for name, *_rest in packages.asked]), packages.asked
    assert desk.panel.sections is not before and len(before.segment.changed) == 0
    assert machine.engine() is not engine and desk.segment._machine.engine is machine.engine()
    assert desk.ui.sections.visible


def test_reload_reads_the_library_again_and_leaves_no_listener(desk):
    old, python, widgets = desk.panel, desk.widget.self(), vars(desk.ui).values()
    assert sum(map(pythonqt.connection_count, widgets)) > 30
    segment, library = old.sections.segment, sys.modules["HiEndSegLib"]
    python.onReload()
    assert sys.modules["HiEndSegLib"] is not library and desk.widget.self() is not python
    assert len(segment.changed) == 0 and old.sections is None and python.panel is None
    assert desk.panel is not old and desk.ui.runButton.text == "Segment"
    ours = [w.name for w in widgets if pythonqt.connection_count(w) and not w.name.startswith("HiEndSeg")]
    assert ours == [], "the old form still calls the old panel"


def test_the_modules_own_self_test_passes(desk):
    """As CTest runs it; Reload-and-Test calls the same methods."""
    module = sys.modules["HiEndSeg"]
    desk.exit()
    suite = unittest.TestLoader().loadTestsFromTestCase(module.HiEndSegTest)
    assert suite.countTestCases() == 7
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun == 7 and not result.skipped
    assert not result.errors and not result.failures, "\n".join(text for _case, text in result.errors + result.failures)
    assert not [name for name in vars(module.HiEndSegTest) if "test" in name.lower() and not name.startswith("test_")]


def test_opening_the_module_imports_nothing_heavy(slicerApp, tmp_path):
    """In a Python of its own: the file of the module, then the panel."""
    import subprocess
    from pathlib import Path

    from desk import MODULE

    here = Path(__file__).resolve().parent
    code = (f"import sys; sys.path.insert(0, {str(here)!r}); import time, double; from pathlib import Path\n"
            f"double.start(Path({str(tmp_path)!r}))\n"
            "from double import scripted\n"
            "before = set(sys.modules); began = time.process_time()\n"
            f"module = scripted.qSlicerScriptedLoadableModule({str(MODULE)!r}).start()\n"
            "took = time.process_time() - began\n"
            "ours = {name.split('.')[0] for name in set(sys.modules) - before}\n"
            "assert ours == {'HiEndSeg'}, ours\n"
            "assert took < 0.05, took\n"
            "widget = module.widgetRepresentation(); widget.enter()\n"
            "heavy = {'torch', 'nibabel', 'SimpleITK', 'monai', 'scipy'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
            "module.unload(); print('light')\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("light\n"), done.stderr[-2000:]


def test_slicer_ends_while_it_runs(desk):
    """Quitting closes the worker within a second; nothing raises although nodes go at the same time."""
    import time

    from HiEndSegPanel.scenarios import QuickEngine, sampleVolume

    desk.segment.set_engine(QuickEngine(patient=True))
    desk.choose(sampleVolume(size=(20, 20, 10)))
    desk.ui.runButton.click()
    assert desk.until(lambda: desk.state.fraction > 0)
    python, began = desk.widget.self(), time.monotonic()
    python.cleanup()
    desk.scene.Clear(0)
    assert time.monotonic() - began < 2.0 and desk.count("vtkMRMLSegmentationNode") == 0
    python.cleanup()                            # Slicer may call it twice
    desk.widget.reload()
    assert desk.ui.runButton.text == "Segment"
