"""Sample data and terminology at Slicer's start, on stand-ins for the application and with the wheel's own logic."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from HiEndSegLib.desktop import samples, startup
from HiEndSegLib.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


class SampleData:
    """Slicer's SampleData module, as far as registration goes. Its 5.12 has categories with titles."""

    def __init__(self, new=True):
        self.sources, self.titles = {}, {}
        self.SampleDataLogic = SimpleNamespace(sampleDataSourcesByCategory=lambda name: self.sources.get(name, []),
                                               registerCustomSampleDataSource=self.register)
        if new:
            self.SampleDataLogic.registerCustomSampleDataCategory = self.category

    def category(self, name, title=None):
        self.titles[name] = title
        self.sources.setdefault(name, [])

    def register(self, category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None,
                 customDownloader=None, thumbnailFileName=None, loadFileType=None, loadFiles=None,
                 loadFileProperties=None, checksums=None):
        self.sources.setdefault(category, []).append(SimpleNamespace(
            sampleName=sampleName, uris=uris, fileNames=fileNames, nodeNames=nodeNames, checksums=checksums,
            customDownloader=customDownloader, thumbnailFileName=thumbnailFileName))


@pytest.mark.parametrize("new", [True, False])
def test_sample_is_registered_once(new):
    module = SampleData(new)
    assert samples.register_samples(module) is True
    assert samples.register_samples(module) is False                     # Reload in Slicer
    assert module.titles == ({"HiEndSeg": "HiEndSeg"} if new else {})
    (source,) = module.sources["HiEndSeg"]
    assert source.uris.startswith("https://") and source.uris.endswith("/main/Resources/Sample/" + source.fileNames)
    algorithm, digest = source.checksums.split(":")
    path = samples.sample_path()
    assert (algorithm, digest) == ("SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert path.name == source.fileNames and source.nodeNames == source.sampleName
    thumbnail = Path(source.thumbnailFileName)
    data = thumbnail.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 100_000
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (260, 280)
    assert callable(source.customDownloader)


def slicer_that_loads(result):
    """A `slicer` whose loadVolume returns (or raises) `result`, and which records what it showed."""
    shown, asked = [], []

    def load(path, properties):
        asked.append((path, properties))
        if isinstance(result, Exception):
            raise result
        return result
    return SimpleNamespace(util=SimpleNamespace(loadVolume=load, errorDisplay=shown.append), shown=shown, asked=asked)


def test_loaded_sample_forgets_its_file():
    """On real MRML: saving the scene must not write into the installed extension."""
    wheel = pytest.importorskip("slicer", exc_type=ImportError, reason="the slicer-core wheel is missing: no MRML")
    scene = wheel.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    node.AddDefaultStorageNode()
    assert node.GetStorageNode() is not None
    stand_in = slicer_that_loads(node)
    assert samples.load_sample(stand_in) is node
    assert stand_in.asked == [(str(samples.sample_path()), {"name": "HiEndSegTorsoCT"})]
    assert node.GetStorageNode() is None and scene.GetNumberOfNodesByClass("vtkMRMLStorageNode") == 0
    assert samples.load_sample(stand_in) is node                         # one without storage is fine too


def test_sample_that_cannot_be_loaded(monkeypatch):
    with pytest.raises(InputError, match="could not read the sample CT .*; install HiEndSeg again"):
        samples.load_sample(slicer_that_loads(RuntimeError("Failed to load file")))
    stand_in = slicer_that_loads(RuntimeError("Failed to load file"))
    monkeypatch.setitem(sys.modules, "slicer", stand_in)
    module = SampleData()
    samples.register_samples(module)
    (source,) = module.sources["HiEndSeg"]
    assert source.customDownloader(source) == [] and "install HiEndSeg again" in stand_in.shown[0]
    monkeypatch.setattr(samples, "resource", lambda name: Path("/nowhere") / name)
    with pytest.raises(InputError, match="is missing; install HiEndSeg again"):
        samples.load_sample(stand_in)


def test_button_in_sample_data_needs_no_network(monkeypatch):
    node = SimpleNamespace(GetStorageNode=lambda: None)
    stand_in = slicer_that_loads(node)
    monkeypatch.setitem(sys.modules, "slicer", stand_in)
    module = SampleData()
    samples.register_samples(module)
    (source,) = module.sources["HiEndSeg"]
    assert source.customDownloader(source) == [node] and not stand_in.shown


# ------------------------------------------------------------------------------------------------------- start-up

def test_start_loads_the_terminology_into_slicers_own_logic():
    wheel = pytest.importorskip("slicer", exc_type=ImportError, reason="the slicer-core wheel is missing: no MRML")
    logic = wheel.vtkSlicerTerminologiesModuleLogic()
    module = SampleData()
    application = SimpleNamespace(modules=SimpleNamespace(terminologies=SimpleNamespace(logic=lambda: logic)))
    startup.completed(application, module)
    names = pytest.importorskip("vtk").vtkStringArray()
    logic.GetLoadedTerminologyNames(names)
    assert "Segmentation category and type - HiEndSeg" in [names.GetValue(n) for n in range(names.GetNumberOfValues())]
    assert len(module.sources["HiEndSeg"]) == 1


def test_start_survives_what_slicer_lacks(caplog):
    """No terminologies module, no Sample Data: one line each in the log, and no exception in the slot."""
    with caplog.at_level(logging.WARNING):
        startup.completed(SimpleNamespace(modules=SimpleNamespace()), SampleData())
    assert not caplog.records                                            # switched off: nothing to complain about
    logic = SimpleNamespace(LoadTerminologyFromFile=lambda path: None)
    pytest.importorskip("slicer", exc_type=ImportError, reason="the slicer-core wheel is missing: no bridge")
    broken = SimpleNamespace(modules=SimpleNamespace(terminologies=SimpleNamespace(logic=lambda: logic)))
    with caplog.at_level(logging.WARNING):
        startup.completed(broken, SimpleNamespace())
    assert [record.getMessage() for record in caplog.records] == [
        "The terminology of HiEndSeg was not loaded", "The sample CT of HiEndSeg was not registered"]
    assert all(record.exc_info for record in caplog.records)


def test_importing_the_desktop_files_is_cheap():
    """They hang on Slicer's start for every user: nothing but the standard library, and little of it."""
    code = ("import sys; before = set(sys.modules)\n"
            "import HiEndSegLib.desktop.startup, HiEndSegLib.desktop.samples, HiEndSegLib.desktop.installer\n"
            "tops = {n.split('.')[0] for n in set(sys.modules) - before}\n"
            "print(sorted(tops - set(sys.stdlib_module_names) - {'HiEndSegLib'}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stdout + done.stderr
