"""Which packages are there and which are missing: looked up in the installation records, nothing is imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import wording

_ = wording.translator(__name__)


@dataclass(frozen=True)
class PackageRow:
    """One requirement. installed: its version, None where it is missing. state: "ok", "missing" or "old".

    download, disk: (least, most) in millions of bytes, with what it brings along; None where nobody measured it.
    why: what it is for.
    """

    name: str
    requirement: str
    installed: str | None
    state: str
    download: tuple[float, float] | None = None
    disk: tuple[float, float] | None = None
    why: str = ""


def installed_version(name: str) -> str | None:
    """The version of an installed package; None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirement_lines(text: str) -> list[str]:
    """The requirements of a requirements.txt: comments, empty lines and pip's options are left out."""
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def look_at_packages(lines: list[str], sizes: dict[str, dict] | None = None,
                     version_of: Callable[[str], str | None] = installed_version) -> list[PackageRow]:
    """A row for each requirement that concerns this Python and system.

    Raises InputError where a line is no requirement (the file was edited, or is damaged).
    """
    requirement_class, invalid = _requirement_class()
    sizes = package_sizes() if sizes is None else sizes
    rows = []
    for line in lines:
        try:
            requirement = requirement_class(line)
        except invalid:
            raise InputError(_('"{line}" in the list of required packages cannot be read; install HiEndSeg again.')
                             .format(line=line[:80])) from None
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = version_of(requirement.name)
        state = "missing" if version is None else \
            "ok" if requirement.specifier.contains(version, prereleases=True) else "old"
        size = sizes.get(requirement.name, {})
        requirement.marker = None               # it has been asked, and would need quotes in a command line
        rows.append(PackageRow(requirement.name, str(requirement), version, state, _pair(size.get("download")),
                               _pair(size.get("disk")), why(requirement.name)))
    return rows


def package_sizes(path: Path | None = None) -> dict[str, dict]:
    """`Resources/packages.json`; empty where it is missing or damaged, since sizes are a courtesy."""
    if path is None:
        from ..resources import resource

        path = resource("packages.json")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: entry for name, entry in data.items() if isinstance(entry, dict)} if isinstance(data, dict) else {}


def total(rows: list[PackageRow], what: str) -> tuple[float, float]:
    """(least, most) millions of bytes of what is not "ok"; what: "download" or "disk"."""
    pairs = [getattr(row, what) or (0.0, 0.0) for row in rows if row.state != "ok"]
    return sum(low for low, _high in pairs), sum(high for _low, high in pairs)


def why(name: str) -> str:
    """What a package is for, in a few words."""
    return {
        "torch": _("computes the networks"),
        "nibabel": _("orientation of volumes, NIfTI files"),
        "safetensors": _("reads model weights without running code"),
        "jsonschema": _("checks model cards"),
        "platformdirs": _("finds your model folder"),
        "psutil": _("memory that is free"),
        "numpy": _("arithmetic on voxels"),
        "scipy": _("resampling"),
        "SimpleITK": _("image files"),
        "pydicom": _("DICOM files"),
    }.get(name, "")


def _pair(value: Any) -> tuple[float, float] | None:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value):
        return float(value[0]), float(value[1])
    return None


def _requirement_class() -> tuple[type, type]:
    """`packaging`'s reader of requirements; where that is not installed (older Slicers), pip's own copy of it."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ModuleNotFoundError:
        try:
            from pip._vendor.packaging.requirements import InvalidRequirement, Requirement
        except ImportError:
            raise InputError(_("This Python has no pip, so nothing can be installed; install Slicer again.")) from None
    return Requirement, InvalidRequirement
