"""Adapting through the engines, with fake operations: records, finishing early, cancelling, what must not get lost."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engine_fakes import make_library
from engine_helpers import fake_client, finish, leftovers, until, volume, working

from HiEndSegLib import errors
from HiEndSegLib.engine.adapting import AdaptResult
from HiEndSegLib.engine.job import RECORDS
from HiEndSegLib.engine.local import LocalEngine
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.tasks import CancelToken

LEGEND = [Label(1, "liver", "Leber ä", (221, 130, 101)), Label(7, "cyst", "Cyst", (1, 2, 3))]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    with fake_client(folder, cancel=10.0) as client:
        client.folder = folder
        yield client
    assert not leftovers(folder)


@pytest.fixture(params=["worker", "in process"])
def engine(request, shared):
    if request.param == "worker":
        yield shared
        assert not leftovers(shared.folder), "a job left its folder behind"
    else:
        with LocalEngine(make_library()) as local:
            yield local


def labels(given):
    return given.with_array((np.asarray(given.array) > 0).astype(np.uint8) * 7, name="Anna^Maria corrected")


def submit(engine, model, **changes):
    given = volume()
    return engine.submit_adapt(given, labels(given), LEGEND, name="Mine", model=model,
                               **{"structures": ["liver", "cyst"], **changes})


def test_everything_crosses_and_records_arrive_in_order(engine):
    job = submit(engine, "short", speed="quick", steps=50, seed=3, keep_teaching=True, structures="cyst")
    result = job.result(60)
    assert type(result) is AdaptResult and result.key == "mine@1.0.0" and result.messages == ["A sentence."]
    report = result.report
    assert report["volume"] == "int16" and report["labels"] == "uint8"
    assert report["sum"] == 7 * int((volume().array > 0).sum())
    assert [Label.from_dict(entry) for entry in report["legend"]] == LEGEND
    assert report["arguments"] == {
        "name": "Mine", "structures": ["cyst"], "encoder": None, "speed": "quick", "device": "auto", "steps": 50,
        "seed": 3, "keep_teaching": True, "keep_if_worse": False, "sides": "ask", "threads": None,
        "memory_limit": None}
    assert [record["step"] for record in job.records] == list(range(50))
    assert job.records[1] == {"kind": "step", "step": 1, "loss": 0.5} and job.records[3]["loss"] is None
    assert not report["asked"]


def test_a_blocking_call_tells_each_record_once(engine):
    given, told = volume(), []
    result = engine.adapt(given, labels(given), LEGEND, name="Mine", structures=["liver"], model="short",
                          record=told.append)
    assert result.key == "mine@1.0.0" and [record["step"] for record in told] == list(range(50))


def test_finishing_early_keeps_the_best_so_far(engine):
    job = submit(engine, "endless")
    until(lambda: len(job.records) > 3, job)
    job.finish()
    job.finish()
    assert job.finishing and job.state == "running" and job.progress.message == "Finishing with the best so far"
    result = job.result(60)
    assert job.state == "finished" and result.report["asked"] and result.report["steps"] >= 3
    job.finish()
    assert job.state == "finished"


def test_finishing_takes_as_long_as_it_takes(tmp_path):
    with fake_client(tmp_path, cancel=0.1) as client:
        job = submit(client, "slow to finish")
        until(lambda: job.records, job)
        job.finish()
        assert job.result(60).report["asked"], "the patience of a cancel is not meant"


def test_a_job_that_has_not_begun_is_cancelled_by_finish(engine):
    running = submit(engine, "endless")
    waiting = submit(engine, "endless")
    working(running)
    waiting.finish()
    assert waiting.state == "cancelled"
    running.cancel()
    finish(running)
    assert running.state == "cancelled"


def test_before_the_worker_is_up_finish_is_cancel(tmp_path):
    with fake_client(tmp_path) as client:                # whose worker cannot have said hello yet
        job = submit(client, "endless")
        job.finish()
        assert job.state == "cancelled"


def test_a_segmentation_takes_no_notice_of_finish(engine):
    job = engine.submit_segment(volume(), model="obedient")
    working(job)
    job.finish()
    with pytest.raises(TimeoutError):
        job.result(0.3)
    job.cancel()
    finish(job)
    assert job.state == "cancelled"


def test_cancel_works_after_finish_and_within_a_second(tmp_path):
    with fake_client(tmp_path) as client:
        job = submit(client, "deaf")                     # a step that takes for ever
        until(lambda: len(job.records) > 5, job)
        job.finish()
        began = time.monotonic()
        job.cancel()
        assert job.state == "cancelling"
        finish(job)
        assert time.monotonic() - began < 2.0, "0.7 s of patience, and a busy machine"
        assert job.state == "cancelled" and not leftovers(tmp_path)


def test_what_lies_on_the_disk_already_is_told_in_spite_of_a_late_cancel(engine):
    job = submit(engine, "late")
    until(lambda: job.records, job)
    job.finish()
    job.cancel()
    result = job.result(60)
    assert result.report["cancelled"] and result.key == "mine@1.0.0" and job.state == "finished"


def test_a_token_finishes_and_cancels_a_blocking_call(engine):
    given, token = volume(), CancelToken()
    result = engine.adapt(given, labels(given), LEGEND, name="Mine", structures=["liver"], model="endless",
                          cancel=token, record=lambda values: values["step"] > 2 and token.finish())
    assert result.report["asked"]
    stop = CancelToken()
    with pytest.raises(errors.Cancelled):
        engine.adapt(given, labels(given), LEGEND, name="Mine", structures=["liver"], model="endless", cancel=stop,
                     record=lambda values: values["step"] > 2 and stop.cancel())


def test_only_the_last_records_are_kept(shared):
    job = shared.submit_segment(volume(), model="obedient")
    for step in range(RECORDS + 10):
        job._record({"step": step})
    assert len(job.records) == RECORDS and job.records[-1]["step"] == RECORDS + 9
    job.cancel()
    finish(job)


def test_a_record_that_cannot_be_sent_costs_a_log_line_only(shared):
    job = submit(shared, "unsendable")
    until(lambda: len(job.records) > 8, job)
    assert [record["step"] for record in job.records[:8]] == list(range(8))
    assert any("a record was not sent" in line for line in job.log)
    job.cancel()
    finish(job)
