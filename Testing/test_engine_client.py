"""The client and a real worker process with fake operations: results, states, errors, logs, cancel."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from engine_fakes import make_library
from engine_helpers import fake_client, finish, leftovers, until, volume, working

from HiEndSegLib import errors
from HiEndSegLib.engine import JobState
from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.engine.interface import Engine
from HiEndSegLib.engine.local import LocalEngine
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.tasks import CancelToken


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One client for the whole file: what one test does may not disturb the next.

    Its patience is long, so that on a busy machine an obedient worker is never taken for a deaf one.
    """
    folder = tmp_path_factory.mktemp("engine")
    with fake_client(folder, cancel=10.0) as client:
        client.folder = folder
        yield client
    assert not leftovers(folder)


@pytest.fixture
def client(shared):
    yield shared
    assert not leftovers(shared.folder), "a job left its folder behind"


def test_a_result_carries_everything(client):
    seen = []
    given = volume()
    result = client.segment(given, device="cpu", only=["liver"], roi=((0, 1), (2, 3.5), (4, 5)),
                            progress=lambda *step: seen.append(step))
    np.testing.assert_array_equal(result.labels.array, given.array > 0)
    assert result.labels.array.dtype == np.uint8 and result.labels.same_lattice(given, 0.0)
    assert result.labels.name == "Anna^Maria labels" and result.labels.meta == given.meta
    assert result.legend == [Label(1, "liver", "Leber ä", (221, 130, 101),
                                   {"category": ["SCT", "1", "x"], "modifier": None})]
    assert result.statistics == [{"id": "liver", "voxels": int((given.array > 0).sum()), "mean_hu": None}]
    assert result.info["only"] == ["liver"] and result.info["roi"] == ((0, 1), (2, 3.5), (4, 5))
    assert result.info["dtype"] == "int16" and result.info["seconds"] == 0.5 and result.messages == ["A sentence."]
    assert seen[-1] == (1.0, "Done") and [f for f, _ in seen] == sorted(f for f, _ in seen)
    assert (0.25, "Working") in seen
    result.labels.array[0, 0, 0] = 9                     # in memory and writable: its file is gone


def test_memory_order_is_kept(client):
    given = volume()
    result = client.segment(given.with_array(np.asfortranarray(given.array)))
    assert result.info["fortran"]
    np.testing.assert_array_equal(result.labels.array, given.array > 0)


def test_the_worker_stays_warm_and_keeps_one_model_thread(client):
    first, second = client.segment(volume()).info, client.segment(volume()).info
    assert first["pid"] == second["pid"] == client.worker_pid != os.getpid()
    assert second["calls"] == first["calls"] + 1
    assert client.doctor()["threads"] == 1 and client.worker_state == "ready"


def test_a_polled_job_goes_through_its_states(client):
    job = client.submit_segment(volume())
    states = [job.state]
    until(lambda: states.append(job.poll()) or job.done)
    assert list(dict.fromkeys(states)) == ["running", "finished"] and job.state is JobState.FINISHED
    assert job.progress == (1.0, "Done") and job.error is None and 0 < job.seconds < 20
    assert job.result().labels is job.result().labels
    job.cancel()
    assert job.state == "finished" and any("finished after" in line for line in job.log)


def test_jobs_wait_for_each_other(client):
    jobs = [client.submit_segment(volume()) for _ in range(3)]
    assert [str(job.state) for job in jobs] == ["running", "idle", "idle"]
    jobs[1].cancel()
    assert jobs[1].state == "cancelled"
    calls = [jobs[n].result(60).info["calls"] for n in (0, 2)]
    assert calls[1] == calls[0] + 1 and jobs[0].number < jobs[1].number < jobs[2].number


def test_progress_never_falls_and_survives_nonsense(client):
    seen = []
    client.segment(volume(), model="progress", progress=lambda *step: seen.append(step))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and 0.9 in fractions and fractions[-1] == 1.0


@pytest.mark.parametrize("model, error, words", [
    ("bad_input", errors.InputError, "The volume is flat; choose another one."),
    ("memory", errors.OutOfMemoryError, "memory is not enough"),
    ("module", errors.EngineError, "no module module_that_is_not_there"),
    ("bug", errors.HiEndSegError, r"KeyError.*report it"),
    ("nonsense", errors.HiEndSegError, "AttributeError"),
])
def test_failures_are_a_code_and_a_sentence(client, model, error, words):
    pid = client.segment(volume()).info["pid"]
    job = client.submit_segment(volume(), model=model)
    with pytest.raises(error, match=words) as caught:
        job.result(60)
    assert type(caught.value) is error
    assert job.state == "failed" and job.error is caught.value
    assert client.segment(volume()).info["pid"] == pid, "an ordinary failure keeps the worker"


def test_logs_name_neither_paths_nor_patients(client):
    for model in ("bug", "chatty"):
        job = client.submit_segment(volume(), model=model)
        finish(job)
        text = "\n".join([*job.log, *client.worker_output()])
        assert "engine_fakes.py" in text
        assert "Anna" not in text and "anna" not in text and "/" not in text.replace("<path>/", "")
    assert "a print" in text and "from a child" in text and "<path>" in text


def test_whatever_prints_does_not_reach_the_protocol(client):
    job = client.submit_segment(volume(), model="chatty")
    assert job.result(60).messages == ["A sentence."]
    assert not any("not JSON" in line for line in job.log)


def test_the_worker_lives_in_a_clean_environment(client, monkeypatch, tmp_path):
    monkeypatch.setenv("ITK_AUTOLOAD_PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    with fake_client(tmp_path) as other:
        report = other.doctor()
    assert report["itk"] is None and report["utf8"] == 1 and report["stdin"] == ""
    assert report["torch"] is False, "the worker imports torch only for an operation that needs it"
    assert not any(folder in ("", str(tmp_path)) or folder.endswith("engine") for folder in report["path"])
    assert report[7] == (1, None)


def test_cancel_is_obeyed_and_the_worker_stays(client):
    pid = client.segment(volume()).info["pid"]
    job = client.submit_segment(volume(), model="obedient")
    working(job)
    began = time.monotonic()
    job.cancel()
    assert job.state == "cancelling" and job.progress.message == "Stopping"
    finish(job)
    assert time.monotonic() - began < 2.0 and job.state == "cancelled"
    with pytest.raises(errors.Cancelled):
        job.result()
    assert client.segment(volume()).info["pid"] == pid


def test_a_result_that_crosses_the_cancel_is_dropped(client):
    job = client.submit_segment(volume(), model="late")
    working(job)
    job.cancel()
    with pytest.raises(errors.Cancelled):
        job.result(60)
    assert client.segment(volume()).messages == ["A sentence."]


def test_a_deaf_worker_is_killed_within_a_second_and_replaced(tmp_path):
    with fake_client(tmp_path) as other:
        job = other.submit_segment(volume(), model="deaf")
        working(job)
        pid, began = other.worker_pid, time.monotonic()
        job.cancel()
        finish(job)
        assert time.monotonic() - began < 2.0, "0.7 s of patience, and a busy machine"
        assert job.state == "cancelled" and not leftovers(tmp_path)
        assert other.worker_pid is None and other.worker_state == "none"
        assert other.segment(volume()).info["pid"] != pid


def test_cancel_before_the_job_was_handed_over(tmp_path):
    with fake_client(tmp_path) as other:                 # whose worker cannot have said hello yet
        job = other.submit_segment(volume())
        pid = other.worker_pid
        job.cancel()
        assert job.state == "cancelled"
        until(lambda: not leftovers(tmp_path))
        assert other.segment(volume()).info["pid"] == pid, "nothing was sent, so the worker was not to blame"


def test_a_blocking_call_listens_to_its_token_and_to_exceptions(client):
    token = CancelToken()
    with pytest.raises(errors.Cancelled):
        client.segment(volume(), model="obedient", cancel=token,
                       progress=lambda fraction, message: fraction > 0 and token.cancel())

    def stop(fraction, message):
        if fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.segment(volume(), model="obedient", progress=stop)
    assert client.segment(volume()).messages, "the interrupted job does not block the next"


def test_waiting_with_a_timeout_leaves_the_job_going(client):
    job = client.submit_segment(volume(), model="obedient")
    working(job)
    with pytest.raises(TimeoutError):
        job.result(0.05)
    assert job.state == "running"
    job.cancel()
    finish(job)


def test_a_result_too_long_for_a_line_is_a_failure_not_a_hang(tmp_path):
    with fake_client(tmp_path) as other, pytest.raises(errors.EngineError, match="longer than the 4000 bytes"):
        other.segment(volume(), model="overlong")


def test_after_a_broken_gpu_the_next_job_has_a_new_worker(client):
    pid = client.segment(volume()).info["pid"]
    with pytest.raises(errors.HiEndSegError, match="RuntimeError"):
        client.segment(volume(), model="gpu")
    assert client.segment(volume()).info["pid"] != pid


def test_arguments_that_cannot_cross_fail_the_job(client):
    with pytest.raises(errors.EngineError, match="object cannot be passed"):
        client.segment(volume(), roi=object())
    with pytest.raises(TypeError, match="no setting colour"):
        client.segment(volume(), colour=3)


def test_a_temporary_folder_that_is_missing_fails_the_job(tmp_path):
    with fake_client(tmp_path / "missing") as other, pytest.raises(errors.OutputError, match="TMPDIR"):
        other.segment(volume())


def test_plan_sends_the_lattice_not_the_voxels(client):
    given = volume()
    arguments = client.plan(given, model="x", device="cpu")
    np.testing.assert_array_equal(arguments.pop("ijk_to_ras"), given.ijk_to_ras)
    assert arguments == {"shape": (20, 21, 22), "dtype": "<i2", "model": "x", "device": "cpu"}


def test_closing_cancels_what_runs_and_refuses_what_comes(tmp_path):
    other = fake_client(tmp_path)
    running, waiting = other.submit_segment(volume(), model="deaf"), other.submit_segment(volume())
    working(running)
    began = time.monotonic()
    other.close()
    other.close()
    assert time.monotonic() - began < 4.0
    assert running.state == waiting.state == "cancelled" and not leftovers(tmp_path)
    with pytest.raises(errors.EngineError, match="closed"):
        other.doctor()


def test_a_client_without_jobs_starts_nothing(tmp_path):
    with EngineClient(temporary=tmp_path) as other:
        assert other.worker_pid is None
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------- the same interface without a process


@pytest.fixture
def local():
    with LocalEngine(make_library()) as engine:
        yield engine


def test_both_engines_have_the_same_methods():
    public = {name for name in dir(Engine) if not name.startswith("_")}
    assert public <= set(dir(LocalEngine)) & set(dir(EngineClient))
    assert not LocalEngine.__abstractmethods__ and not EngineClient.__abstractmethods__


def test_the_local_engine_gives_the_same_result(local, client):
    seen = []
    here, there = local.segment(volume(), progress=lambda *step: seen.append(step)), client.segment(volume())
    np.testing.assert_array_equal(here.labels.array, there.labels.array)
    assert here.legend == there.legend and here.info["pid"] == os.getpid()
    assert (0.25, "Working") in seen and seen[-1] == (1.0, "Done")


def test_the_local_engine_cancels_fails_and_closes(local):
    job, waiting = local.submit_segment(volume(), model="obedient"), local.submit_segment(volume())
    working(job)
    waiting.cancel()
    job.cancel()
    assert job.state == "cancelling" and waiting.state == "cancelled"
    with pytest.raises(errors.Cancelled):
        job.result(5)
    with pytest.raises(errors.InputError):
        local.segment(volume(), model="bad_input")
    with pytest.raises(errors.OutOfMemoryError):
        local.segment(volume(), model="memory")
    with pytest.raises(errors.HiEndSegError, match="KeyError"):
        local.segment(volume(), model="bug")
    running = local.submit_segment(volume(), model="obedient")
    working(running)
    local.close()
    assert running.state == "cancelled"
    with pytest.raises(errors.EngineError, match="closed"):
        local.segment(volume())


def test_the_local_engine_keeps_one_thread(local):
    assert local.segment(volume()).info["calls"] == 1 and local.segment(volume()).info["calls"] == 2
    assert local.doctor()["threads"] == 1
