"""`hiendseg app`, and what `make run` does with and without a terminal, as commands in processes of their own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from cli_helpers import write_real_model

pytest.importorskip("aiohttp", reason="the page's packages are not installed")

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "HiEndSegLib.cli"]


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "PYTHONPATH": str(ROOT), "HIENDSEG_MODELS": str(tmp_path / "models"), "TMPDIR": str(tmp_path),
            "OMP_NUM_THREADS": "1"}


def said(process, pattern, seconds=90.0):
    """Read lines until one matches; the match."""
    deadline, lines = time.monotonic() + seconds, []
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError("".join(lines))


def test_the_address_is_there_before_torch_and_before_any_view(environment):
    script = ("import sys, HiEndSegWeb.serve as serve; from HiEndSegLib.cli import main\n"
              "def fake(**options): print(sorted(options), [m for m in ('torch', 'vtk', 'slicer', 'trame') if m in "
              "sys.modules]); return 0\n"
              "serve.serve = fake\nsys.exit(main(['app', '--no-browser']))")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_it_serves_until_it_is_asked_to_end(environment, tmp_path):
    with subprocess.Popen([*COMMAND, "app", "--no-browser"], env=environment, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT) as process:
        address = said(process, r"HiEndSeg is at (http://127\.0\.0\.1:\d+/\?token=\S+)").group(1)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.partition("?")[0], timeout=10)
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert b"is starting" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert not list(tmp_path.glob("hiendseg-*"))            # nor is a session's folder left


def test_a_port_that_is_taken_is_said(environment):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run([*COMMAND, "app", "--no-browser", "--port", str(taken.getsockname()[1])], text=True,
                              env=environment, capture_output=True, timeout=60)
    assert done.returncode != 0 and "choose another port" in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_said(environment):
    done = subprocess.run([*COMMAND, "app", "nothing.nii"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "nothing.nii does not exist" in done.stderr


@pytest.mark.parametrize("missing", ["HiEndSegWeb", "trame_slicer", "slicer", "aiohttp"])
def test_what_is_not_installed_is_said(environment, missing):
    """As where only the library is: the command ends with one sentence and the exit code of an option's error."""
    script = ("import importlib.util, sys\nfrom importlib.abc import MetaPathFinder\n"
              "class Without(MetaPathFinder):\n"
              "    def find_spec(self, name, path=None, target=None):\n"
              f"        if name.partition('.')[0] == '{missing}':\n"
              "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
              "sys.meta_path.insert(0, Without())\n"
              "look = importlib.util.find_spec\n"
              f"importlib.util.find_spec = lambda name, *more: None if name == '{missing}' else look(name, *more)\n"
              "from HiEndSegLib.cli import main\nsys.exit(main(['app', '--no-browser']))")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and not done.stdout, done.stdout + done.stderr
    assert missing in lines[0] and 'pip install -e ".[web]"' in lines[0] and "unexpected" not in lines[0]


def test_another_host_is_warned_of(environment):
    with subprocess.Popen([*COMMAND, "app", "--no-browser", "--host", "0.0.0.0"], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert said(process, "Warning: the page is offered to every computer")
        assert said(process, r"token=")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


DEMO = ["demo", "--page", "--model", "coarse", "--device", "cpu", "--in-process", "-o", "out"]


def test_without_a_terminal_the_demonstration_ends_after_the_table(environment, tmp_path):
    write_real_model(tmp_path / "models" / "coarse", id="coarse", spacing=[12, 12, 12])
    done = subprocess.run([*COMMAND, *DEMO], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0 and "Liver" in done.stdout and "HiEndSeg is at" not in done.stdout, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="terminals are POSIX")
@pytest.mark.parametrize("once", [True, False])
def test_in_a_terminal_it_serves_the_page_unless_told_not_to(environment, tmp_path, once):
    import pty

    if importlib.util.find_spec("slicer") is None or importlib.util.find_spec("trame_slicer") is None:
        pytest.skip("the page's packages are not installed")
    write_real_model(tmp_path / "models" / "coarse", id="coarse", spacing=[12, 12, 12])
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, *DEMO, *(["--once"] if once else [])], cwd=tmp_path, stdin=theirs,
                               stdout=theirs, stderr=theirs, env={**environment, "DISPLAY": "", "WAYLAND_DISPLAY": ""})
    os.close(theirs)
    text, deadline = "", time.monotonic() + 300
    with contextlib.suppress(OSError):                      # a terminal whose other side is gone
        while time.monotonic() < deadline and "token=" not in text:
            if select.select([ours], [], [], 1.0)[0]:
                text += os.read(ours, 4096).decode("utf-8", "replace")
            elif process.poll() is not None:
                break
    if not once:
        assert re.search(r"HiEndSeg is at http://127\.0\.0\.1:\d+/\?token=\S+", text), text
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0 and "Liver" in text
    assert ("HiEndSeg is at" in text) is not once
    os.close(ours)
