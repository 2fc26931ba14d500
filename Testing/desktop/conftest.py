"""One stand-in of Slicer for the whole process; every test begins with an empty scene and ends without hidden errors.

Run with `pytest Testing/desktop` in a process of its own. `--pictures FOLDER` keeps the panel's screenshots.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parents[1]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import double                                                                    # noqa: E402
from double import application, dialogs, failures, packages                      # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--pictures", default=None, help="folder for screenshots of the panel and slice pictures")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error::UserWarning")      # Slicer's "already has observer"


@pytest.fixture(scope="session")
def slicerApp(tmp_path_factory):
    """`slicer.app` of the stand-in; the models of whoever runs the tests stay out of it, and untouched."""
    os.environ["HIENDSEG_MODELS"] = str(tmp_path_factory.mktemp("models"))
    return double.start(tmp_path_factory.mktemp("slicer"))


@pytest.fixture(scope="session")
def wholeDesk(slicerApp, request):
    from desk import Desk

    made = Desk(request.config.getoption("--pictures"))
    yield made
    made.module.unload()


@pytest.fixture
def desk(wholeDesk):
    """The module, open and entered, on an empty scene; its engine stays warm from test to test."""
    wholeDesk.begin()
    yield wholeDesk
    wholeDesk.end()


@pytest.fixture(autouse=True)
def clean(slicerApp):
    """An empty scene, no dialogs, no recorded failures; fails where PythonQt would have printed and gone on."""
    import slicer

    slicer.mrmlScene.Clear(0)
    dialogs.reset()
    failures.taken()
    packages.asked.clear()
    slicerApp.testing = False
    yield
    slicerApp.processEvents()
    found = failures.taken()
    unanswered = dialogs.unused_answers()
    application.hide_main_window()
    assert not found, "exceptions in slots or callbacks:\n" + "\n".join(found)
    assert not unanswered, f"dialogs that never came: {unanswered}"
    dialogs.reset()
