"""Whatever dies, and whenever: only the running job is lost, no file stays, and the next job works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from engine_helpers import FAKES, fake_client, finish, gone, leftovers, until, volume, working

from HiEndSegLib import __version__
from HiEndSegLib.engine import protocol
from HiEndSegLib.engine.folder import PrivateFolder
from HiEndSegLib.engine.process import START_SCRIPT
from HiEndSegLib.errors import EngineError

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def client(tmp_path):
    with fake_client(tmp_path) as client:
        client.folder = tmp_path
        yield client
    assert not leftovers(tmp_path)


def at_start(client):
    return client.submit_segment(volume())


def while_computing(client):
    job = client.submit_segment(volume(), model="deaf")
    working(job)
    return job


def while_writing(client):
    job = client.submit_segment(volume(), model="writing")
    until(lambda: job.progress.message == "Half written", job)
    assert any(path.name.startswith("result") for path in leftovers(client.folder)[0].iterdir())
    return job


def while_cancelling(client):
    job = while_computing(client)
    job.cancel()
    return job


@posix
@pytest.mark.parametrize("moment", [at_start, while_computing, while_writing, while_cancelling])
def test_killing_the_worker_costs_the_running_job_only(client, moment):
    if moment is not at_start:
        client.segment(volume())
    job = moment(client)
    waiting = client.submit_segment(volume())
    pid = client.worker_pid
    os.kill(pid, signal.SIGKILL)
    finish(job)
    if moment is while_cancelling:
        assert job.state == "cancelled"
    else:
        assert job.state == "failed" and type(job.error) is EngineError
        assert "killed by signal 9, often out of memory" in job.error.sentence and "next one" in job.error.sentence
    assert waiting.result(60).info["pid"] != pid, "the job behind it is done by a new worker"
    assert not leftovers(client.folder)
    np.testing.assert_array_equal(client.segment(volume()).labels.array, volume().array > 0)


@posix
def test_a_worker_that_died_while_idle_costs_nothing(client):
    pid = client.segment(volume()).info["pid"]
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    assert client.segment(volume()).info["pid"] != pid


@posix
def test_a_worker_that_dies_before_it_has_the_job_costs_nothing(client):
    pid = client.segment(volume()).info["pid"]
    os.kill(pid, signal.SIGSTOP)                          # so that the job cannot be finished before the kill
    job = client.submit_segment(volume())
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    finish(job)
    assert job.state in ("finished", "failed") and client.segment(volume()).info["pid"] != pid


@posix
@pytest.mark.parametrize("model, words", [("kill", "killed by signal 9"), ("crash", "killed by signal 11"),
                                          ("leave", "exit code 3")])
def test_a_worker_that_dies_by_itself_is_explained(client, model, words):
    job = client.submit_segment(volume(), model=model)
    with pytest.raises(EngineError, match=f"stopped unexpectedly .{words}"):
        job.result(60)
    log = "\n".join(job.log)
    assert "anna" not in log.lower()
    if model == "kill":
        assert "worker: last words about <path> of <name>" in log
    if model == "crash":
        assert "Fatal Python error: Segmentation fault" in log and "engine_fakes.py" in log
    assert client.segment(volume()).messages


@posix
def test_a_hanging_worker_is_noticed_stopped_and_replaced(tmp_path):
    with fake_client(tmp_path, silence=2.5) as client:
        pid = client.segment(volume()).info["pid"]
        job = client.submit_segment(volume(), model="stopped")
        with pytest.raises(EngineError, match="no sign of life for 2.5 s"):
            job.result(60)
        assert gone(pid) and client.segment(volume()).info["pid"] != pid


@posix
def test_a_killed_process_that_is_slow_to_go_is_tidied_up_after_without_polling(tmp_path, monkeypatch):
    with fake_client(tmp_path, gone=0.0, cancel=0.0) as client:
        job = while_computing(client)
        process, remove = client._worker, PrivateFolder.remove
        monkeypatch.setattr(PrivateFolder, "remove",         # as Windows does while the process holds the file
                            lambda folder: process.returncode is not None and remove(folder))
        job.cancel()
        finish(job)
        assert job.state == "cancelled" and client._worker is None
        until(lambda: not leftovers(tmp_path))               # and nobody polls


def test_a_pause_of_this_side_is_not_the_workers_silence(tmp_path, monkeypatch):
    with fake_client(tmp_path, silence=5.0) as client:
        job = client.submit_segment(volume(), model="obedient")
        working(job)
        later = time.monotonic() + 3600
        monkeypatch.setattr("HiEndSegLib.engine.client.time.monotonic", lambda: later)
        assert job.poll() == "running"
        monkeypatch.undo()
        job.cancel()


# ---------------------------------------------------------------------- the worker alone, and clients that die


def start_worker_alone(*arguments):
    return subprocess.Popen([sys.executable, str(START_SCRIPT), "--test-operations", FAKES, *arguments],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def read(worker, kind):
    while True:
        message = protocol.decode_line(worker.stdout.readline())
        if message["type"] == kind:
            return message


def ask(worker, model, folder):
    from HiEndSegLib.engine import transfer

    encoded, arrays = transfer.encode({"volume": volume(), "model": model, "device": "cpu", "only": None,
                                       "roi": None}, "argument")
    transfer.write_arrays(arrays, folder, lambda: None)
    worker.stdin.write(protocol.encode_line({"type": "job", "job": 1, "operation": "segment", "folder": str(folder),
                                             "arguments": encoded}))
    worker.stdin.flush()


def test_the_worker_says_hello_and_beats():
    worker = start_worker_alone()
    hello = protocol.decode_line(worker.stdout.readline())
    assert hello["type"] == "hello" and hello["protocol"] == protocol.PROTOCOL_VERSION
    assert hello["library"] == __version__ and hello["pid"] == worker.pid
    assert read(worker, "heartbeat")["job"] is None
    worker.stdin.close()
    assert worker.wait(3) == 0


def test_the_heart_beats_while_the_model_computes(tmp_path):
    worker = start_worker_alone()
    ask(worker, "deaf", tmp_path)
    while read(worker, "heartbeat")["job"] is None:
        pass
    assert read(worker, "heartbeat")["job"] == 1
    worker.kill()
    worker.communicate()


def test_the_worker_takes_half_lines_and_ignores_garbage(tmp_path):
    worker = start_worker_alone()
    worker.stdin.write(b'nonsense\n{"type":"cancel","job":99}\n{"type":"what"}\n')
    worker.stdin.write(b"x" * (protocol.MAX_LINE + 1) + b"\n")
    line = protocol.encode_line({"type": "job", "job": 5, "operation": "doctor", "folder": str(tmp_path),
                                 "arguments": {}})
    worker.stdin.write(line[:20])
    worker.stdin.flush()
    read(worker, "heartbeat")
    worker.stdin.write(line[20:] + protocol.encode_line({"type": "job", "job": 6, "operation": "__init__",
                                                         "folder": str(tmp_path), "arguments": {}}))
    worker.stdin.flush()
    assert read(worker, "finished")["job"] == 5
    refused = read(worker, "failed")
    assert refused["job"] == 6 and "no operation" in refused["sentence"]
    worker.stdin.close()
    assert worker.wait(3) == 0


@pytest.mark.parametrize("model", ["deaf", "obedient", "writing"])
def test_the_worker_ends_with_its_stdin_also_while_a_job_runs(tmp_path, model):
    folder = PrivateFolder(tmp_path)
    worker = start_worker_alone()
    ask(worker, model, folder.path)
    while read(worker, "progress")["message"] != ("Half written" if model == "writing" else "Working"):
        pass
    began = time.monotonic()
    worker.stdin.close()
    assert worker.wait(3) == 0 and time.monotonic() - began < 2.0
    assert not leftovers(tmp_path), "it removes the folder of a client that may be dead"
    folder.remove()


@posix
def test_a_client_that_is_killed_leaves_neither_worker_nor_files(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        sys.path[:0] = sys.argv[1:3]
        from engine_helpers import fake_client, volume, working
        client = fake_client(sys.argv[3])
        job = client.submit_segment(volume(), model="deaf")
        working(job)
        print(client.worker_pid, flush=True)
        job.result()
    """)
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(Path(__file__).parent), str(tmp_path)],
                               stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    assert psutil.pid_exists(pid) and len(leftovers(tmp_path)) == 1
    process.kill()
    process.wait()
    gone(pid)
    assert not leftovers(tmp_path)


def test_a_program_that_forgets_to_close_leaves_nothing(tmp_path):
    code = textwrap.dedent("""
        import sys
        sys.path[:0] = sys.argv[1:3]
        from engine_helpers import fake_client, volume, working
        client = fake_client(sys.argv[3])
        job = client.submit_segment(volume(), model="deaf")
        working(job)
        print(client.worker_pid)
    """)
    run = subprocess.run([sys.executable, "-c", code, str(ROOT), str(Path(__file__).parent), str(tmp_path)],
                         capture_output=True, text=True, timeout=30)
    assert run.returncode == 0 and run.stderr == ""
    assert gone(int(run.stdout)) and not leftovers(tmp_path)


@posix
def test_what_both_deaths_left_behind_goes_with_the_next_job(tmp_path):
    code = ("import os, sys; from HiEndSegLib.engine.folder import PrivateFolder; "
            "(PrivateFolder(sys.argv[1]).path / 'argument0.npy').write_bytes(b'voxels'); os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert len(leftovers(tmp_path)) == 1
    with fake_client(tmp_path) as client:
        client.segment(volume())
    assert not leftovers(tmp_path)
