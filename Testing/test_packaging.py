"""What the Slicer extension says about itself and what it ships: lists, metadata, imports.

The checks of metadata are those that the Extensions Index runs on a submission, as far as they need no network.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from cmake_lists import LISTS, ROOT, read_list, tracked, wanted, write_list

CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
ENTRY = ROOT / "Resources" / "ExtensionsIndex" / "HiEndSeg.json"
#: Fields of an index entry (version 1.0.2), in our words; those that the index demands, and those we always give.
ENTRY_SCHEMA = {
    "type": "object", "additionalProperties": False,
    "required": ["$schema", "category", "scm_url", "scm_revision", "build_dependencies", "build_subdirectory", "tier"],
    "properties": {
        "$schema": {"const": "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/"
                             "slicer-extension-catalog-entry-schema-v1.0.2.json#"},
        "category": {"const": "Segmentation"},
        "scm_url": {"type": "string", "pattern": r"^https://[^/]+/[^/]+/[^/]*[Ss]licer[^/]*$"},
        "scm_revision": {"type": "string", "minLength": 1},
        "scm_type": {"enum": ["git"]},
        "build_dependencies": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "build_subdirectory": {"const": "."},
        "dicom_support_rule": {"type": "string", "minLength": 1},
        "enabled": {"type": "boolean"},
        "tier": {"type": "integer", "minimum": 1, "maximum": 5},
    }}


@pytest.fixture(scope="module")
def files():
    try:
        return tracked()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this copy of the project has no git index to compare with")


# ---------------------------------------------------------------------------------------------------- CMake and git

@pytest.mark.parametrize("file, variable", LISTS)
def test_lists_agree_with_git(files, file, variable):
    listed = read_list((ROOT / file).read_text(encoding="utf-8"), variable)
    assert listed == wanted(files)[variable], "run: python Testing/cmake_lists.py"


def test_lists_are_what_is_installed(files):
    lists = wanted(files)
    library = lists["HIENDSEG_LIBRARY_SCRIPTS"] + lists["HIENDSEG_LIBRARY_RESOURCES"]
    module = lists["HIENDSEG_MODULE_SCRIPTS"] + lists["HIENDSEG_MODULE_RESOURCES"]
    assert "HiEndSegLib/__init__.py" in library and "HiEndSegLib/engine/start_worker.py" in library
    assert "Resources/Models/torso-ct-tiny/weights.safetensors" in library
    assert "Resources/requirements.txt" in module and "Resources/Icons/HiEndSeg.svg" in module
    both = [path.lower() for path in library + module]          # one folder in the end, on Windows without case
    assert len(both) == len(set(both))
    for path in library + module:
        assert ".." not in path and not path.startswith(("/", "training/", "Testing/")), path
    folders = {path.split("/")[0] for path in library + module if "/" in path} - {"Resources"}
    assert "HiEndSegLib" in folders and all(name.startswith("HiEndSeg") for name in folders)    # one sys.path for all
    assert {path for path in library + module if "/" not in path} <= {"HiEndSeg.py"}     # loose .py are modules


def test_a_forgotten_file_is_noticed():
    lists = wanted(["HiEndSegLib/a.py", "HiEndSegLib/table.json", "HiEndSeg/HiEndSeg.py", "HiEndSeg/CMakeLists.txt",
                    "Resources/Screenshots/big.png", "training/x.py", "Testing/test_x.py", "HiEndSegLib/files.cmake"])
    assert lists == {"HIENDSEG_LIBRARY_SCRIPTS": ["HiEndSegLib/a.py"],
                     "HIENDSEG_LIBRARY_RESOURCES": ["HiEndSegLib/table.json"],
                     "HIENDSEG_MODULE_SCRIPTS": ["HiEndSeg.py"], "HIENDSEG_MODULE_RESOURCES": []}
    text = "x\nset(A\n)\n\nset(B\n  old\n)\n"
    text = write_list(write_list(text, "A", ["1", "2"]), "B", [])
    assert text == "x\nset(A\n  1\n  2\n)\n\nset(B\n)\n"
    assert read_list(text, "A") == ["1", "2"] and read_list(text, "B") == []
    with pytest.raises(ValueError, match="no list C"):
        read_list(text, "C")
    with pytest.raises(ValueError, match="take these names apart"):
        write_list(text, "A", ["two words.py"])


# ------------------------------------------------------------------------------------------------- index metadata

def _setting(name: str) -> str:
    """`set(NAME "…")` as the index's checker reads it: one line, one string."""
    found = re.findall(rf'^set\({name} "([^"\n]+)"\)$', CMAKE, re.MULTILINE)
    assert len(found) == 1, f"{name} must be one string on one line"
    return found[0]


def _local(url: str) -> Path:
    """The file behind a raw URL of our own repository."""
    entry = json.loads(ENTRY.read_text(encoding="utf-8"))
    raw = entry["scm_url"].replace("https://github.com/", "https://raw.githubusercontent.com/")
    prefix = f"{raw}/{entry['scm_revision']}/"
    assert url.startswith(prefix), f"{url} is not in {prefix}"
    return ROOT / url.removeprefix(prefix)


def test_index_entry():
    data = ENTRY.read_bytes()
    assert b"\r" not in data and data.endswith(b"}\n")
    entry = json.loads(data)
    jsonschema.Draft7Validator(ENTRY_SCHEMA, format_checker=None).validate(entry)
    assert ENTRY.stem == "HiEndSeg" and not ENTRY.stem.startswith("Slicer")
    assert entry["scm_url"].rsplit("/", 1)[1] == "Slicer" + ENTRY.stem
    assert entry["build_dependencies"] == _setting("EXTENSION_DEPENDS").split() == ["PyTorch"]
    assert _setting("EXTENSION_HOMEPAGE") == entry["scm_url"]


def test_cmake_names_the_extension_once_and_completely():
    assert re.findall(r"project\s*\(\s*([^\s)]+)", CMAKE) == [ENTRY.stem]
    order = [CMAKE.index(text) for text in (
        "cmake_minimum_required", "project(", "EXTENSION_HOMEPAGE", "find_package(Slicer",
        "include(${Slicer_USE_FILE})", "ctkMacroCompilePythonScript(", "add_subdirectory(HiEndSeg)",
        "include(${Slicer_EXTENSION_GENERATE_CONFIG})",
        "include(${Slicer_EXTENSION_CPACK})")]
    assert order == sorted(order)
    description = _setting("EXTENSION_DESCRIPTION")
    assert "For research use" in description and description.count(". ") <= 2 and len(description) < 300
    assert _setting("EXTENSION_CONTRIBUTORS")


def test_pictures_of_the_index_exist_and_are_small(files):
    icon = _local(_setting("EXTENSION_ICONURL"))
    shots = [_local(url) for url in _setting("EXTENSION_SCREENSHOTURLS").split(" ")]
    for path in (icon, *shots):
        assert path.suffix == ".png" and path.read_bytes().startswith(b"\x89PNG"), path
        assert path.relative_to(ROOT).as_posix() in files, f"{path} is not in git"
    assert _png_size(icon) == (128, 128) and icon.stat().st_size < 30_000


def _png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_icon_is_plain_enough_for_qt():
    """Qt draws SVG Tiny: no styles, filters, masks, clipping or text."""
    from xml.etree import ElementTree

    root = ElementTree.parse(ROOT / "HiEndSeg" / "Resources" / "Icons" / "HiEndSeg.svg").getroot()
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "g", "path", "rect", "circle", "ellipse"}
    assert root.get("viewBox") == "0 0 128 128" and not any(element.get("style") for element in root.iter())


def test_licence_and_size(files):
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    # What the history itself holds: a store may keep an object twice (loose and packed), a clone does not.
    history = int(subprocess.run(
        ["git", "-C", str(ROOT), "rev-list", "--disk-usage", "--objects", "HEAD"],
        check=True, capture_output=True, text=True,
    ).stdout)
    assert history < 80e6, "the project keeps its history below 80 MB"
    total = history + sum((ROOT / p).stat().st_size for p in files)
    assert total < 100e6, "the index takes repositories below 100 MB, history included"


# --------------------------------------------------------------------------------------------------------- imports

def _imports(tree: ast.AST, package: str) -> set[str]:
    """Absolute names of modules imported anywhere in `tree`; `package` resolves relative imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[:len(parents) - node.level + 1], *([base] if base else [])])
            names.add(base)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def _file_scope(tree: ast.Module) -> ast.Module:
    """Only what runs on import: no bodies of functions, nothing below `if TYPE_CHECKING`."""
    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return ast.Module(body=node.decorator_list and [ast.Expr(d) for d in node.decorator_list], type_ignores=[])
        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_Lambda(self, node):
            return ast.Constant(None)

        def visit_If(self, node):
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return [self.visit(child) for child in node.orelse] or None
            return self.generic_visit(node)
    return Strip().visit(tree)


def _own_file(name: str) -> Path | None:
    """The file of a module of our library, or of a package beside the module file."""
    paths = [folder.joinpath(*name.split(".")) for folder in (ROOT, ROOT / "HiEndSeg")]
    return next((p for path in paths for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def _imported_at_start(path: Path, package: str, seen: set[str]) -> set[str]:
    """Top-level names of foreign modules that importing `path` imports, through our own modules."""
    foreign = set()
    for name in _imports(_file_scope(ast.parse(path.read_text(encoding="utf-8"))), package):
        if name.split(".")[0] not in ("HiEndSegLib", "HiEndSegPanel"):
            foreign.add(name.split(".")[0])
            continue
        parts = name.split(".")
        for module in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
            file = _own_file(module)
            if file is not None and module not in seen:
                seen.add(module)
                inside = module if file.name == "__init__.py" else module.rpartition(".")[0]
                foreign |= _imported_at_start(file, inside, seen)
    return foreign


def test_module_file_imports_nothing_heavy():
    foreign = _imported_at_start(ROOT / "HiEndSeg" / "HiEndSeg.py", "", set()) - set(sys.stdlib_module_names)
    assert foreign <= {"qt", "ctk", "vtk", "slicer"}, "imported at Slicer's start for every user"


def test_scope_finder_sees_what_runs(tmp_path):
    source = tmp_path / "m.py"
    source.write_text("import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nibabel\n"
                      "try:\n    import numpy as np\nexcept ImportError:\n    np = None\n"
                      "class A:\n    import qt\n    def f(self):\n        import scipy\n"
                      "from HiEndSegLib.networks import position\n")
    found = _imported_at_start(source, "", set())
    assert {"os", "numpy", "qt", "torch"} <= found and not {"nibabel", "scipy"} & found
    source.write_text("def f(x=None):\n    import torch\n")
    assert _imported_at_start(source, "", set()) == set()


def test_what_ships_needs_neither_training_nor_tests(files):
    for path in files:
        if path.endswith(".py") and path.startswith(("HiEndSegLib/", "HiEndSeg/")):
            package = path.rpartition("/")[0].replace("/", ".")
            for name in _imports(ast.parse((ROOT / path).read_text(encoding="utf-8")), package):
                assert name.split(".")[0] not in ("training", "Testing", "conftest"), f"{path} imports {name}"
                assert not (ROOT / "Testing" / f"{name.split('.')[0]}.py").exists(), f"{path} imports {name}"
