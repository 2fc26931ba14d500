"""What HiEndSeg adds to Slicer's Python: the list agrees with the project's, is enough, and replaces nothing there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "HiEndSeg" / "Resources" / "requirements.txt"
#: Needed outside Slicer only: Slicer has them itself (5.10 its pydicom 2.4, which ours must not replace), reads and
#: writes the files, or gets PyTorch from an extension.
NOT_FOR_SLICER = {"numpy", "scipy", "simpleitk", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "torch"}
#: What Slicer 5.10 and 5.12 have in their Python, and what our packages may ask of it.
SLICER_PYTHON = {"numpy": "2.0.2", "scipy": "1.13.1", "packaging": "24.0"}
#: Packages that must not come into Slicer by us, not even through others.
UNWELCOME = {"simpleitk", "requests", "opencv-python", "opencv-python-headless", "torch", "pydicom", "vtk", "pandas"}


def requirements() -> list[Requirement]:
    """As Slicer reads the file: whole lines, comments only at their start."""
    lines = [line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def project_dependencies() -> list[Requirement]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]$", text, re.MULTILINE | re.DOTALL).group(1)
    return [Requirement(text) for text in re.findall(r'^\s+"([^"]+)"', block, re.MULTILINE)]


def test_requirements_are_those_of_the_project():
    ours = {requirement.name.lower(): str(requirement) for requirement in requirements()}
    project = {requirement.name.lower(): str(requirement) for requirement in project_dependencies()}
    assert len(ours) == len(requirements()) and len(project) >= 10
    assert set(ours) == set(project) - NOT_FOR_SLICER
    for requirement in requirements():
        assert str(requirement) == project[requirement.name.lower()]
        assert {clause.operator for clause in requirement.specifier} == {">="}, "lower bounds only"


def closure(names: list[str], extras_of_slicer: dict[str, str]) -> set[str]:
    """Distributions that `names` need, as their metadata say, for Python 3.12; Slicer's are checked, not followed."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        for text in metadata.requires(name) or []:
            asked = Requirement(text)
            if asked.marker is not None and not asked.marker.evaluate(
                    {"extra": "", "python_version": "3.12", "python_full_version": "3.12.10"}):
                continue
            there = extras_of_slicer.get(asked.name.lower())
            if there is None:
                waiting.append(asked.name)
            else:
                assert there in asked.specifier, f"{name} would replace Slicer's {asked.name} {there}"
    return seen


def test_requirements_bring_nothing_that_slicer_must_keep():
    seen = closure([requirement.name for requirement in requirements()], SLICER_PYTHON)
    assert {"nibabel", "jsonschema", "attrs"} <= seen and not seen & UNWELCOME


# ------------------------------------------------------------------------------------- a Python like Slicer's, by links

SEGMENT = """
import sys
import numpy as np
from HiEndSegLib.engine.local import LocalEngine
from HiEndSegLib.geometry.volume import Volume

array = np.full((24, 24, 24), -1000, np.int16)
array[4:20, 4:20, 4:20] = 50
engine = LocalEngine()
result = engine.segment(Volume(array, np.diag([6.0, 6.0, 6.0, 1.0])), device="cpu")
assert result.labels.array.shape == array.shape
engine.doctor()
for name in ("models.official", "engine.client", "engine.worker", "geometry.statistics"):
    __import__("HiEndSegLib." + name)
print("segmented")
"""

SETUP_PAGE = """
import sys
import HiEndSegLib.desktop.installer, HiEndSegLib.desktop.samples, HiEndSegLib.desktop.startup
import HiEndSegLib.engine.client, HiEndSegLib.engine.redact, HiEndSegLib.models.registry
from HiEndSegLib.presenter.setup import SetupPresenter

with open(sys.argv[1], encoding="utf-8") as file:
    page = SetupPresenter(installer=None, requirements=file.read(), engine=None)
print(page.state.phase, *[row.name for row in page.state.packages if row.state == "missing"])
"""


def run_in(folder: Path, names: set[str], code: str) -> str:
    """Output of `code` in a Python that has the standard library, these distributions and our library, no others."""
    for name in names:
        distribution = metadata.distribution(name)
        site = Path(distribution.locate_file("")).resolve()
        for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(site / top)
    (folder / "HiEndSegLib").symlink_to(ROOT / "HiEndSegLib")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder),
                   "HIENDSEG_MODELS": str(folder / "models")}
    done = subprocess.run([sys.executable, "-S", "-s", "-c", code, str(REQUIREMENTS)], capture_output=True, text=True,
                          env=environment, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_requirements_are_enough_to_segment(tmp_path):
    """With Slicer's numpy and scipy, PyTorch, and what our list brings, the shipped model segments a volume."""
    pytest.importorskip("torch")
    names = closure([*(requirement.name for requirement in requirements()), "torch", "numpy", "scipy", "packaging"], {})
    assert "simpleitk" not in names and "pydicom" not in names
    assert run_in(tmp_path, names, SEGMENT) == "segmented\n"


def test_page_of_first_use_opens_before_anything_is_installed(tmp_path):
    names = [requirement.name for requirement in requirements()]
    assert run_in(tmp_path, {"numpy", "packaging"}, SETUP_PAGE).split() == ["needed", "torch", *names]
