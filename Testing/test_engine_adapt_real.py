"""Adapting through the engine with the real operations and a tiny network: a version at the end, or nothing at all."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest
from cli_helpers import files_in, write_real_model
from encoder_folders import write_encoder
from engine_helpers import leftovers, until

from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.engine.local import LocalEngine
from HiEndSegLib.errors import EngineError, ModelError, OptionError, OutOfMemoryError, OutputError
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.registry import USER_FOLDER_VARIABLE, Registry
from HiEndSegLib.models.teaching import has_teaching

LIVER, CORE = Label(1, "liver", "Liver", (221, 130, 101)), Label(7, "core", "Core", (9, 8, 7))
SETTINGS = {"model": "tiny", "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The user's model folder with a tiny model that calls every voxel of a body liver."""
    folder = tmp_path_factory.mktemp("models")
    write_real_model(folder / "tiny@1.0.0")
    patch = pytest.MonkeyPatch()
    patch.setenv(USER_FOLDER_VARIABLE, str(folder))
    patch.setenv("OMP_NUM_THREADS", "1")
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def client(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    with EngineClient(temporary=folder) as client:
        yield client
    assert not leftovers(folder)


def case(edge=32):
    """A warm ball with a dense core, 3 mm, and a drawing of the core on a lattice of half the spacing."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij"))
    radius = np.sqrt((grid ** 2).sum(0))
    noise = np.random.default_rng(0).normal(0, 10, radius.shape)
    array = (np.where(radius < 0.5, 220, np.where(radius < 0.9, 0, -1000)) + noise).astype(np.int16)
    fine = np.repeat(np.repeat(np.repeat(radius < 0.5, 2, 0), 2, 1), 2, 2).astype(np.uint8) * CORE.value
    matrix = np.diag([1.5, 1.5, 1.5, 1.0])
    matrix[:3, 3] = -0.75
    return (Volume(array, np.diag([3.0, 3.0, 3.0, 1.0]), "Anna^Maria", {"modality": "CT"}),
            Volume(fine, matrix, "Anna^Maria drawn"))


def submit(engine, *, name="Core", structures=("core",), **settings):
    volume, labels = case()
    return engine.submit_adapt(volume, labels, [LIVER, CORE], name=name, structures=list(structures),
                               **{**SETTINGS, **settings})


def without_times(report):
    return {key: value for key, value in report.items() if "seconds" not in key and "peak" not in key}


def test_a_version_comes_out_and_its_parent_stays_as_it_was(client, models):
    before = {name: (models / "tiny@1.0.0" / name).read_bytes() for name in files_in(models / "tiny@1.0.0")}
    job = submit(client, steps=8, seed=5, keep_if_worse=True, keep_teaching=True)
    result = job.result(120)
    assert result.key == "core@1.0.0" and result.report["steps"] <= 8 and result.unsaved is None
    assert {record["kind"] for record in job.records} == {"step", "score"}
    assert any("other" in text and "lattice" in text for text in result.messages), result.messages
    assert [row["id"] for row in result.report["taught"]] == ["core"] and result.report["taught"][0]["new"]
    registry = Registry()
    card = registry.get(result.key)
    assert card.title == "Core" and registry.parent_of(card).key == "tiny@1.0.0"
    assert [label.id for label in card.labels] == ["liver", "kidney_left", "core"]
    assert "Anna" not in (card.folder / "card.json").read_text() and (card.folder / "teaching.npz").is_file()
    assert {name: (models / "tiny@1.0.0" / name).read_bytes() for name in before} == before
    volume, _ = case()
    legend = client.segment(volume, model=result.key, device="cpu").legend
    assert [label.id for label in legend] == ["liver", "kidney_left", "core"]
    assert client.segment(volume, model="tiny", device="cpu").legend[-1].id == "kidney_left"
    with LocalEngine() as local:
        here = submit(local, steps=8, seed=5, name="Here").result(120)
    assert without_times(here.report) == without_times(result.report), "the same seed gives the same scores"
    assert not any("Anna" in line for line in job.log)


def test_a_version_is_taught_again_with_its_earlier_case(client):
    """Follows the test above."""
    volume, labels = case()
    other = Volume(volume.array[:, ::-1], volume.ijk_to_ras, "B", volume.meta)
    drawn = labels.array[:, ::-1].copy()
    drawn[drawn.shape[0] // 2:][drawn[drawn.shape[0] // 2:] > 0] = 8
    result = client.adapt(other, labels.with_array(drawn), [LIVER, CORE, Label(8, "half", "Half", (1, 1, 1))],
                          name="Core and half", structures=["core", "half"], steps=2, keep_if_worse=True,
                          **{**SETTINGS, "model": "core"})
    card = Registry().get(result.key)
    assert result.report["teaching_cases"] == 1 and card.title == "Core and half"
    assert Registry().parent_of(card).key == "core@1.0.0" and Registry().base_of(card).key == "tiny@1.0.0"


def test_a_version_goes_out_with_everything_it_needs(client, tmp_path):
    """Follows the tests above. Whoever has no base gets a model that answers as the version does."""
    volume, _ = case()
    target = tmp_path / "core.zip"
    assert client.submit_export("core", target).result(60) == str(target)
    registry = Registry(tmp_path / "nothing", tmp_path / "elsewhere")
    card = registry.add(target)
    assert not card.is_version and card.training["adaptation"]["name"] == "Core"
    assert not (card.folder / "teaching.npz").exists()
    there, here = (client.segment(volume, model=model, device="cpu") for model in (str(card.folder), "core"))
    assert np.array_equal(there.labels.array, here.labels.array)
    assert client.submit_export("core", target).result(60) == str(target), "an older file gives way"


def test_what_did_not_get_better_is_kept_only_when_asked(client, models):
    before = files_in(models)
    result = submit(client, name="Worse", steps=1).result(120)
    assert result.key is None and not result.report["better"] and files_in(models) == before
    assert "Nothing got better" in result.report["sentence"]
    with pytest.raises(EngineError, match="no longer in memory"):
        client.submit_keep("something else").result(60)
    kept = client.submit_keep(result.unsaved).result(60)
    assert kept.key == "worse@1.0.0" and Registry().get("worse").title == "Worse"
    assert kept.report == result.report
    with pytest.raises(EngineError, match="no longer in memory"):
        client.submit_keep(result.unsaved).result(60)


def test_a_model_that_is_best_as_it_was_is_not_kept_twice(client, models):
    before = files_in(models)
    volume, labels = case()
    drawn = labels.with_array((labels.array > 0).astype(np.uint8) * LIVER.value)
    result = client.adapt(volume, drawn, [LIVER], name="Same", structures=["liver"], steps=1, keep_if_worse=True,
                          **SETTINGS)
    assert result.report["best_step"] == 0 and result.key is None and result.unsaved is None
    assert "nothing to keep" in result.messages[-1] and files_in(models) == before


def learning(client, **settings):
    """A job that learns and would go on for ever."""
    job = submit(client, **{"name": "Endless", "steps": 10 ** 6, **settings})
    until(lambda: job.records or job.done, job)
    assert not job.done, job.error
    return job


def test_finishing_early_gives_what_there_is(client):
    job = learning(client, keep_if_worse=True, name="Early")
    job.finish()
    result = job.result(60)
    assert result.report["stopped"] == "asked" and 0 < result.report["steps"] < 10 ** 6
    assert Registry().get(result.key).title == "Early"


def test_cancelling_while_it_learns_takes_a_second_and_leaves_nothing(client, models):
    before = files_in(models)
    job = learning(client)
    began = time.monotonic()
    job.cancel()
    until(lambda: job.done, job)
    assert job.state == "cancelled" and time.monotonic() - began < 2.0, "one second, and a busy machine"
    assert files_in(models) == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_worker_that_is_killed_while_it_learns_leaves_nothing(client, models):
    before = files_in(models)
    job = learning(client)
    os.kill(client.worker_pid, signal.SIGKILL)
    until(lambda: job.done, job)
    assert type(job.error) is EngineError and files_in(models) == before
    assert client.doctor()["models"], "the next job has a new worker"


def test_what_cannot_fit_is_refused_before_anything_is_done(client):
    job = submit(client, name="Big", memory_limit=30_000_000)
    with pytest.raises(OutOfMemoryError, match=r"needs about 0\.\d GB of main memory and 30 MB are free"):
        job.result(60)
    assert not job.records


def test_what_can_be_refused_early_is(client):
    with pytest.raises(ModelError, match="'tiny test model 2' is free|Tiny test model 2"):
        submit(client, name="Tiny test model").result(60)
    with pytest.raises(OptionError, match="no structure 'spleen'"):
        submit(client, name="x", structures=["spleen"]).result(60)
    with pytest.raises(OptionError, match="no speed 'fast'"):
        submit(client, name="x", speed="fast").result(60)


def test_from_an_encoder_alone_comes_a_whole_model(client, tmp_path):
    volume, labels = case()
    encoder = write_encoder(tmp_path / "encoder", crop=24, spacing=3.0)
    plans = client.submit_plan_adapt(volume, encoder=encoder, structures=["core"], device="cpu").result(60)
    assert plans["quick"].fits and plans["quick"].bytes_host > 1e8
    result = client.adapt(volume, labels, [CORE], name="From nothing", structures=["core"], encoder=encoder, steps=2,
                          keep_if_worse=True, keep_teaching=True, device="cpu", threads=1)
    card = Registry().get(result.key)
    assert card.key == "from-nothing@1.0.0" and not card.is_version and [label.id for label in card.labels] == ["core"]
    assert [label.id for label in client.segment(volume, model=card, device="cpu").legend] == ["core"]
    again = client.adapt(volume, labels, [CORE], name="From that", structures=["core"], model=card, steps=2,
                         keep_if_worse=True, device="cpu", threads=1)
    assert again.report["teaching_cases"] == 0, "the same case is not its own earlier case"
    with pytest.raises(ModelError):
        client.submit_plan_adapt(volume, encoder=tmp_path / "nothing.pt").result(60)


def test_plans_of_both_speeds(client):
    volume, _ = case()
    plans = client.submit_plan_adapt(volume, model="tiny", structures=["core"], device="cpu").result(60)
    assert plans["auto"] == "quick" and plans["quick"].fits and plans["full"].fits
    assert plans["quick"].speed == "quick" and plans["quick"].sentence.startswith("Quick: about ")
    assert 0 < plans["quick"].minutes < plans["full"].minutes * 10 and plans["quick"].bytes_host > 1e8
    one = client.submit_plan_adapt(volume, model="tiny", speed="full", device="cpu").result(60)
    assert set(one) == {"full", "auto"}


def test_images_are_copied_only_where_that_was_asked_for(client):
    """Follows the tests above: "core" remembers its case."""
    volume, labels = case()
    other = volume.with_array(np.ascontiguousarray(volume.array[::-1]), name="C")
    made = []
    for name, parent, value in (("Not asked", "core", 8), ("Not asked either", "not-asked", 9)):
        drawn = labels.array[::-1] // CORE.value * np.uint8(value)
        new = Label(value, f"new_{value}", f"New {value}", (1, 1, value))
        made.append(client.adapt(other, labels.with_array(drawn), [LIVER, new], name=name, structures=[new.id], steps=2,
                                 keep_if_worse=True, **{**SETTINGS, "model": parent}))
    assert [result.report["teaching_cases"] for result in made] == [1, 1], "the case of the grandparent still counts"
    assert not any(has_teaching(Registry().get(result.key)) for result in made)
    assert has_teaching(Registry().get("core"))


def test_what_was_learned_survives_a_disk_that_is_full_at_the_end(models, monkeypatch):
    from HiEndSegLib.models import versions

    before = files_in(models)

    def full(*_arguments, **_options):
        raise OutputError("… could not be written because the disk is full; make room.")

    with LocalEngine() as local:
        with monkeypatch.context() as patch:
            patch.setattr(versions, "write_version", full)
            result = submit(local, name="Full disk", steps=2, keep_if_worse=True).result(120)
            assert result.key is None and result.unsaved and result.report["taught"] and files_in(models) == before
            assert any("could not be written because the disk is full" in sentence for sentence in result.messages)
            with pytest.raises(OutputError):
                local.submit_keep(result.unsaved).result(60)
        kept = local.submit_keep(result.unsaved).result(60)
        assert kept.key == "full-disk@1.0.0" and Registry().get("full-disk").title == "Full disk"


def test_too_little_room_is_said_before_anything_is_learned(models, monkeypatch):
    import shutil

    from HiEndSegLib.models import versions

    monkeypatch.setattr(versions.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with LocalEngine() as local, pytest.raises(OutputError, match="may need .* MB and 0 MB are free"):
        submit(local, name="No room").result(60)
