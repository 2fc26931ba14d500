"""Which files the Slicer extension installs, and the CMake lists that say so. Rewrite them with

    python Testing/cmake_lists.py

Slicer's macros copy what is listed and nothing else, silently; git knows what there is. `test_packaging.py` compares.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
#: Of Resources/, what a reader of the README or the index needs and an installed extension does not.
NOT_INSTALLED = ("Resources/Screenshots/", "Resources/ExtensionsIndex/")
#: The lists: CMake file and variable.
LIBRARY, MODULE = "HiEndSegLib/files.cmake", "HiEndSeg/CMakeLists.txt"
LISTS = ((LIBRARY, "HIENDSEG_LIBRARY_SCRIPTS"), (LIBRARY, "HIENDSEG_LIBRARY_RESOURCES"),
         (MODULE, "HIENDSEG_MODULE_SCRIPTS"), (MODULE, "HIENDSEG_MODULE_RESOURCES"))


def tracked(root: Path = ROOT) -> list[str]:
    """Files in git's index that exist, as paths with slashes. Raises OSError or CalledProcessError without git."""
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], check=True, capture_output=True, text=True)
    return sorted(path for path in listed.stdout.split("\0") if path and (root / path).is_file())


def wanted(paths: list[str]) -> dict[str, list[str]]:
    """Variable -> the paths it must hold, for a project with the files `paths`."""
    lists: dict[str, list[str]] = {variable: [] for _, variable in LISTS}
    for path in sorted(paths):
        top, name = PurePosixPath(path).parts[0], PurePosixPath(path).name
        if path.startswith(NOT_INSTALLED) or name == "CMakeLists.txt" or name.endswith(".cmake"):
            continue
        kind = "SCRIPTS" if name.endswith(".py") else "RESOURCES"
        if top in ("HiEndSegLib", "Resources"):
            lists[f"HIENDSEG_LIBRARY_{kind}"].append(path)
        elif top == "HiEndSeg":
            lists[f"HIENDSEG_MODULE_{kind}"].append(path.removeprefix("HiEndSeg/"))
    return lists


def read_list(text: str, variable: str) -> list[str]:
    """The entries of `set(VARIABLE …)`, one a line. Raises ValueError where it is not there."""
    return _block(text, variable).group(1).split()


def write_list(text: str, variable: str, paths: list[str]) -> str:
    """`text` with the entries of `set(VARIABLE …)` replaced."""
    odd = [path for path in paths if re.search(r"[\s;()\"$\\]", path)]
    if odd:
        raise ValueError(f"CMake would take these names apart: {odd}")
    block = _block(text, variable)
    return text[:block.start(1)] + "".join(f"  {path}\n" for path in paths) + text[block.end(1):]


def _block(text: str, variable: str) -> re.Match:
    block = re.search(rf"^set\({variable}\n((?:  \S+\n)*)\)$", text, re.MULTILINE)
    if block is None:
        raise ValueError(f"there is no list {variable}")
    return block


def main() -> int:
    lists = wanted(tracked())
    for file, variable in LISTS:
        path = ROOT / file
        before = path.read_text(encoding="utf-8")
        after = write_list(before, variable, lists[variable])
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            print(f"{file}: {variable} has {len(lists[variable])} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
