"""Workers that are not what they should be: other versions, noise, broken interpreters, launchers."""

from __future__ import annotations

import os
import signal
import stat
import sys
import textwrap

import pytest
from engine_helpers import FAKES, finish, gone, leftovers, until, volume, working

from HiEndSegLib import __version__
from HiEndSegLib.engine import protocol
from HiEndSegLib.engine.client import EngineClient, Patience
from HiEndSegLib.errors import EngineError

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs scripts that start by their first line")


def script(path, body):
    """An executable that is started in place of Python."""
    path.write_text(f"#!{sys.executable}\nimport json, sys, time\n"
                    "def say(**message): print(json.dumps(message), flush=True)\n"
                    f"hello = dict(type='hello', protocol={protocol.PROTOCOL_VERSION}, library={__version__!r})\n"
                    + textwrap.dedent(body))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@posix
@pytest.mark.parametrize("body, words", [
    ("say(**{**hello, 'protocol': 99}); sys.stdin.read()", r"protocol 99\) .* restart the program"),
    ("say(**{**hello, 'library': '0.0.9'}); sys.stdin.read()", "worker is HiEndSeg 0.0.9"),
    ("sys.stdin.read()", "did not start within 1 s"),
    ("import no_such_module_for_hiendseg", "could not start .*no module no_such_module_for_hiendseg"),
    ("sys.exit(4)", r"could not start \(exit code 4\)"),
    ("say(**hello); import os; os.close(1); time.sleep(60)", "closed its output"),
])
def test_workers_that_do_not_work_are_explained(tmp_path, body, words):
    with EngineClient(interpreter=script(tmp_path / "python", body), temporary=tmp_path,
                      patience=Patience(start=1.0 if "within 1 s" in words else 60.0)) as client:
        with pytest.raises(EngineError, match=words):
            client.doctor()
        assert client.worker_pid is None
    assert not leftovers(tmp_path)


@posix
def test_noise_pieces_and_old_answers_do_not_confuse_the_client(tmp_path):
    body = """
        print("Welcome to the launcher")
        out = sys.stdout.buffer
        line = json.dumps(hello).encode() + b"\\n"
        for piece in (line[:5], line[5:9], line[9:] + b"\\xff\\xfe\\n[1]\\n"):
            out.write(piece); out.flush(); time.sleep(0.02)
        job = json.loads(sys.stdin.readline())["job"]
        out.write(b"x" * (8 * 1024 * 1024 + 10) + b"\\n")
        say(type="finished", job=job - 1, result="old")
        say(type="finished", job=None, result="nobody's")
        say(type="failed", job=job + 1, code="x", sentence="new")
        say(type="surprise", job=job)
        say(type="progress", job=job, fraction="much", message=None)
        say(type="finished", job=job, result={"versions": {}})
        sys.stdin.read()
    """
    with EngineClient(interpreter=script(tmp_path / "python", body), temporary=tmp_path) as client:
        job = client.submit_doctor()
        assert job.result(60) == {"versions": {}}
        assert sum("ignored" in line for line in job.log) == 3 and sum("refused" in line for line in job.log) == 1


@posix
def test_the_last_words_of_a_dying_worker_count(tmp_path):
    body = """
        say(**hello)
        job = json.loads(sys.stdin.readline())["job"]
        say(type="finished", job=job, result={"answer": 42})
        sys.exit(1)
    """
    with EngineClient(interpreter=script(tmp_path / "python", body), temporary=tmp_path) as client:
        job = client.submit_doctor()
        until(lambda: client._task.sent, job)
        until(lambda: client._worker.returncode is not None)      # without polling the job
        assert job.result(60) == {"answer": 42}


@posix
def test_not_only_the_launcher_is_killed(tmp_path):
    """PythonSlicer is a launcher: the Python that works is its child."""
    launcher = tmp_path / "PythonSlicer"
    launcher.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    launcher.chmod(0o755)
    with EngineClient(interpreter=launcher, temporary=tmp_path,
                      worker_arguments=("--test-operations", FAKES)) as client:
        real = client.segment(volume()).info["pid"]
        assert real != client.worker_pid
        job = client.submit_segment(volume(), model="deaf")
        working(job)
        job.cancel()
        finish(job)
        assert gone(real)
        again = client.segment(volume()).info["pid"]
        job = client.submit_segment(volume(), model="deaf")
        working(job)
        os.kill(client.worker_pid, signal.SIGKILL)          # the launcher alone: its child goes on and holds the pipes
        with pytest.raises(EngineError, match="signal 9"):
            job.result(60)
        assert gone(again)
        last = client.segment(volume()).info["pid"]
    assert gone(last) and not leftovers(tmp_path)
