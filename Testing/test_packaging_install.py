"""The CMake files configured, built and installed, and what lies in Slicer's module folder afterwards.

The macros here are stand-ins written for this test: they take the arguments that Slicer's and CTK's take and copy,
refuse and install as those do, without byte-compiling. A whole Slicer is not involved.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cmake_lists import ROOT, tracked, wanted

LIB, INSTALLED = "lib/Slicer-5.12/qt-scripted-modules", "HiEndSeg/lib/Slicer-5.12/qt-scripted-modules"

CONFIG = """
set(Slicer_USE_PYTHONQT ON)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR @LIB@)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR @INSTALLED@)
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/use.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/describe.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/pack.cmake)
"""

USE = """
include(CTest)

macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(CTK "NO_INSTALL_SUBDIR;GLOBAL_TARGET" "TARGET_NAME;SOURCE_DIR;DESTINATION_DIR;INSTALL_DIR"
                        "SCRIPTS;RESOURCES" ${ARGN})
  foreach(needed TARGET_NAME SCRIPTS DESTINATION_DIR INSTALL_DIR)
    if(NOT CTK_${needed})
      message(FATAL_ERROR "${needed} is mandatory")
    endif()
  endforeach()
  if(CTK_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown: ${CTK_UNPARSED_ARGUMENTS}")
  endif()
  set(copies)
  foreach(path ${CTK_SCRIPTS} ${CTK_RESOURCES})
    set(from ${CMAKE_CURRENT_SOURCE_DIR}/${path})
    set(to ${CTK_DESTINATION_DIR}/${path})       # "../x" leaves the folder that is installed, as with the genuine one
    add_custom_command(OUTPUT ${to} DEPENDS ${from} COMMAND ${CMAKE_COMMAND} -E copy ${from} ${to})
    list(APPEND copies ${to})
  endforeach()
  add_custom_target(Copy${CTK_TARGET_NAME} ALL DEPENDS ${copies})
  if(CTK_NO_INSTALL_SUBDIR)
    install(DIRECTORY ${CTK_DESTINATION_DIR}/ DESTINATION ${CTK_INSTALL_DIR} USE_SOURCE_PERMISSIONS)
  else()
    install(DIRECTORY ${CTK_DESTINATION_DIR} DESTINATION ${CTK_INSTALL_DIR} USE_SOURCE_PERMISSIONS)
  endif()
endmacro()

macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MODULE_UNPARSED_ARGUMENTS OR NOT MODULE_NAME)
    message(FATAL_ERROR "unknown: ${MODULE_UNPARSED_ARGUMENTS}")
  endif()
  foreach(path ${MODULE_SCRIPTS} ${MODULE_RESOURCES})
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${path})
      message(FATAL_ERROR "there is no ${path}")
    endif()
  endforeach()
  ctkMacroCompilePythonScript(TARGET_NAME ${MODULE_NAME} SCRIPTS "${MODULE_SCRIPTS}" RESOURCES "${MODULE_RESOURCES}"
    DESTINATION_DIR ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
    INSTALL_DIR ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR} NO_INSTALL_SUBDIR)
  if(MODULE_WITH_GENERIC_TESTS)
    add_test(NAME generic_${MODULE_NAME} COMMAND ${CMAKE_COMMAND} -E true)
  endif()
endmacro()

function(slicer_add_python_unittest)
  cmake_parse_arguments(TEST "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${TEST_SCRIPT})
    message(FATAL_ERROR "there is no ${TEST_SCRIPT}")
  endif()
  get_filename_component(name ${TEST_SCRIPT} NAME_WE)
  add_test(NAME py_${name} COMMAND ${CMAKE_COMMAND} -E true)
endfunction()
"""

DESCRIBE = """
foreach(name HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  if("${EXTENSION_${name}}" STREQUAL "")
    message(FATAL_ERROR "EXTENSION_${name} is empty")
  endif()
  file(APPEND ${CMAKE_BINARY_DIR}/description.txt "${name} ${EXTENSION_${name}}\\n")
endforeach()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder Slicer would look into, and the build folder."""
    cmake = shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("cmake or a C++ compiler is missing: the extension cannot be configured here")
    try:
        tracked()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this copy of the project has no git index to compare with")
    folder = tmp_path_factory.mktemp("extension")
    (folder / "slicer").mkdir()
    for name, text in {"SlicerConfig.cmake": CONFIG, "use.cmake": USE, "describe.cmake": DESCRIBE,
                       "pack.cmake": ""}.items():
        (folder / "slicer" / name).write_text(text.replace("@LIB@", LIB).replace("@INSTALLED@", INSTALLED))
    build = folder / "build"
    for command in ([cmake, "-S", str(ROOT), "-B", str(build), f"-DSlicer_DIR={folder / 'slicer'}",
                     f"-DCMAKE_INSTALL_PREFIX={folder / 'prefix'}"],
                    [cmake, "--build", str(build)], [cmake, "--install", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "prefix" / INSTALLED, build


def test_installed_is_what_git_has(installed):
    there, _ = installed
    lists = wanted(tracked())
    sources = {path: ROOT / path for name in ("SCRIPTS", "RESOURCES") for path in lists[f"HIENDSEG_LIBRARY_{name}"]}
    sources |= {path: ROOT / "HiEndSeg" / path for name in ("SCRIPTS", "RESOURCES")
                for path in lists[f"HIENDSEG_MODULE_{name}"]}
    found = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert found == set(sources)
    for path, source in sources.items():
        assert filecmp.cmp(source, there / path, shallow=False), path
    assert [path.name for path in there.parent.parent.parent.parent.iterdir()] == ["HiEndSeg"]     # nothing beside it


def test_description_and_tests_are_known_to_cmake(installed):
    _, build = installed
    description = dict(line.split(" ", 1) for line in (build / "description.txt").read_text().splitlines())
    assert description["DEPENDS"] == "PyTorch" and "research use" in description["DESCRIPTION"]
    listed = subprocess.run(["ctest", "-N", "--test-dir", str(build)], capture_output=True, text=True).stdout
    assert "py_HiEndSeg" in listed and "generic_HiEndSeg" in listed


def test_installed_library_finds_its_resources(installed):
    there, _ = installed
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import HiEndSegLib\n"
            "from HiEndSegLib.models.registry import Registry\n"
            "from HiEndSegLib.desktop.samples import sample_path\n"
            "from HiEndSegLib.engine.process import START_SCRIPT\n"
            "card = Registry().verify()\n"
            "print(HiEndSegLib.__file__, Registry().shipped, sample_path(), START_SCRIPT, card.id, sep='\\n')\n")
    done = subprocess.run([sys.executable, "-c", code, str(there)], capture_output=True, text=True, cwd=there.parent,
                          env={**os.environ, "HIENDSEG_MODELS": str(there / "none"), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    *paths, model = done.stdout.splitlines()
    assert len(paths) == 4 and all(Path(path).is_relative_to(there) for path in paths)
    assert model == "torso-ct-tiny"
