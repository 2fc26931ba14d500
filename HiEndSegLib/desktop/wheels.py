"""A folder of wheels for a computer without a network: does it hold what is asked for, for this Python and system?

pip would say so too, but only in Slicer's Python console. Of what a package needs in turn, pip has the last word.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..presenter.wording import translator

_ = translator(__name__)


def check_wheels(folder: Path, requirements: Sequence[str]) -> None:
    """Raise InputError where the folder lacks a wheel that fits a requirement here, naming the first one."""
    from packaging.requirements import Requirement  # Slicer has it
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    if not folder.is_dir():
        raise InputError(_("The folder of wheels {folder} does not exist; choose another one.").format(folder=folder))
    wheels = []
    for path in folder.glob("*.whl"):
        try:
            wheels.append(parse_wheel_filename(path.name))
        except InvalidWheelFilename:
            continue
    if not wheels:
        raise InputError(_("There are no wheels (.whl files) in {folder}; choose the folder that pip download has "
                           "filled.").format(folder=folder))
    here = frozenset(sys_tags())
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        of_name = [(version, tags) for found, version, _build, tags in wheels if found == name]
        if not of_name:
            raise InputError(_("The folder of wheels lacks {requirement}; download it as the README's offline recipe "
                               "says.").format(requirement=requirement))
        in_range = [tags for version, tags in of_name if requirement.specifier.contains(version, prereleases=True)]
        if not in_range:
            raise InputError(_("The folder of wheels has {name} {version}, but {requirement} is needed; download it "
                               "again.").format(name=name, version=max(version for version, _tags in of_name),
                                                requirement=requirement))
        if not any(tags & here for tags in in_range):
            raise InputError(_("The wheel of {name} in the folder is for another system or Python; this is Python "
                               "{python} on {system}, {machine}.").format(
                                   name=name, python=".".join(platform.python_version_tuple()[:2]),
                                   system=platform.system(), machine=platform.machine()))
