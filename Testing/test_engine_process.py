"""Which Python, which environment, how a death is put into words, and that clients stay light."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from HiEndSegLib.engine import process
from HiEndSegLib.errors import EngineError

ROOT = Path(__file__).resolve().parent.parent


def test_slicer_is_known_by_its_application_not_by_the_wheel():
    assert process.inside_slicer({"slicer": types.SimpleNamespace(app=object())})
    assert not process.inside_slicer({"slicer": types.SimpleNamespace(vtkMRMLScene=object())})
    assert not process.inside_slicer({})


def test_the_interpreter_is_pythonslicer_inside_slicer_and_never_slicer_itself():
    which = {"PythonSlicer": "/opt/Slicer/bin/PythonSlicer"}.get
    assert process.choose_interpreter(True, "/opt/Slicer/bin/SlicerApp-real", which) == "/opt/Slicer/bin/PythonSlicer"
    assert process.choose_interpreter(False, "/usr/bin/python3", which) == "/usr/bin/python3"
    with pytest.raises(EngineError, match="PythonSlicer was not found"):
        process.choose_interpreter(True, "/opt/Slicer/bin/SlicerApp-real", lambda name: None)
    with pytest.raises(EngineError, match="interpreter"):
        process.choose_interpreter(False, None, which)


def test_the_environment_is_utf8_and_keeps_the_rest():
    base = {"PATH": "/bin", "PYTHONUTF8": "0"}
    environment = process.worker_environment(base)
    assert environment == {"PATH": "/bin", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1",
                           "PYTORCH_ENABLE_MPS_FALLBACK": "1"}
    assert base["PYTHONUTF8"] == "0"


def test_no_window_on_windows_and_a_session_of_its_own_elsewhere():
    class StartupInfo:
        dwFlags = 0

    module = types.SimpleNamespace(STARTUPINFO=StartupInfo, STARTF_USESHOWWINDOW=1, SW_HIDE=0,
                                   CREATE_NO_WINDOW=0x08000000, CREATE_NEW_PROCESS_GROUP=0x200)
    options = process.popen_options("win32", module)
    assert options["creationflags"] == 0x08000200
    assert options["startupinfo"].dwFlags == 1 and options["startupinfo"].wShowWindow == 0
    assert process.popen_options("linux") == process.popen_options("darwin") == {"start_new_session": True}


@pytest.mark.parametrize("code, stderr, words", [
    (-9, "", "killed by signal 9, often out of memory"),
    (-11, "", "killed by signal 11, a crash inside a library or driver"),
    (-1, "", "killed by signal 1"),
    (3, "", "exit code 3"),
    (0xC0000005, "", "exit code 0xC0000005, a crash inside a library or driver"),
    (0xC0000005 - (1 << 32), "", "a crash inside a library or driver"),
    (None, "", "it closed its output"),
    (1, "error: [python-real] exit abnormally - Report the problem.\n", "crashed or was killed, often out of memory"),
    (1, "Traceback\nModuleNotFoundError: No module named 'numpy'\n", "no module numpy; install"),
])
def test_a_death_in_words(code, stderr, words):
    assert words in process.describe_exit(code, stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_passed_on_by_a_launcher_is_recognised():
    assert "signal 9" in process.describe_exit(137)


def test_an_interpreter_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(EngineError, match="could not be started"):
        process.WorkerProcess([str(tmp_path / "python")], {}, lambda: None)


def test_importing_the_client_imports_neither_torch_nor_qt_nor_vtk():
    code = ("import sys; import HiEndSegLib.engine.client, HiEndSegLib.engine.local, HiEndSegLib.operations.result, "
            "HiEndSegLib.operations.plan; from HiEndSegLib.engine import transfer; import importlib; "
            "[importlib.import_module(m) for m, _ in transfer.CLASSES.values()]; "
            "print([m for m in sys.modules if m.split('.')[0].lower() in "
            "('torch', 'qt', 'pyside6', 'pyqt5', 'vtk', 'vtkmodules', 'slicer', 'monai')])")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_engine_package_alone_imports_no_numpy():
    code = "import sys, HiEndSegLib.engine, HiEndSegLib.engine.worker; print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
