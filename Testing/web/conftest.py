"""Tests of the page in headless Chromium. They keep a loop of their own running, so `test_web.py` gives them a process.

One server and one browser serve all of them. The pictures of the README are made by pictures.py.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

#: Installed, but Chromium may still be missing: `chrome` says so.
NEEDED = {"playwright": "playwright", "trame_slicer": "trame-slicer", "slicer": "slicer-core", "torch": "torch"}


def missing() -> str:
    from page_tools import chromium_path

    packages = [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]
    if packages:
        return f"not installed: {', '.join(packages)}"
    return "" if chromium_path() else "there is no Chromium; install it (Debian, Ubuntu: apt-get install chromium)"


def pytest_collection_modifyitems(items):
    reason = missing()
    if reason:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"the page cannot be tested here: {reason}"))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The person's model folder."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    """The CT: a part of the sample that is one tile for the model."""
    import nibabel
    from page_tools import PART, SAMPLE

    path = tmp_path_factory.mktemp("case") / "abdomen.nii.gz"
    nibabel.save(nibabel.load(SAMPLE).slicer[PART], path)
    return path


@pytest.fixture(scope="session")
def site(tmp_path_factory, models, case):
    """The server, with the probes of probed_session.py in its sessions; its first one opens the CT."""
    from page_tools import Site

    site = Site(tmp_path_factory.mktemp("site"), models, file=case)
    yield site
    site.close()


@pytest.fixture(scope="session")
def chrome():
    from page_tools import Chrome

    chrome = Chrome()
    yield chrome
    chrome.close()


@pytest.fixture(scope="session")
def tab(site, chrome):
    """The page with the CT, in the one browser that the server's token lets in. Its acts build on each other."""
    from page_tools import Tab

    tab = Tab(chrome.context, site.address)
    tab.first_picture()
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def second(tab, chrome, site):
    """Another page of the same browser: a session of its own."""
    from page_tools import Tab

    second = Tab(chrome.context, site.home)
    yield second
    second.close()
