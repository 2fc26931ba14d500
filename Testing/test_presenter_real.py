"""The presenter on the real engine client: cancel, death and a damaged model with real processes, then a real CT."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from bridge_scene import ct, ct_volume, linear_transform, scene, slicer                                   # noqa: F401
from presenter_helpers import FakeRegistry, card

from HiEndSegLib.bridge.layers import read_segments
from HiEndSegLib.bridge.tables import read_table
from HiEndSegLib.bridge.volumes import node_from_volume
from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.presenter.segment import SegmentPresenter
from HiEndSegLib.resources import resource

OPERATIONS = str(Path(__file__).with_name("presenter_operations.py"))


def until(presenter, condition, seconds=300.0):
    """Tick as a face's timer does until `condition(state)`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition(presenter.state):
        assert time.monotonic() < deadline, presenter.state
        presenter.tick()
        time.sleep(0.01)
    return presenter.state


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with EngineClient(temporary=tmp_path_factory.mktemp("private"),
                      worker_arguments=("--test-operations", OPERATIONS)) as engine:
        yield engine


@pytest.fixture
def presenter(scene, ct, engine, tmp_path):                                                         # noqa: F811
    """Models by what they do: "obedient" waits for a cancel, "deaf" does not listen, "nothing" answers at once."""
    cards = [dataclasses.replace(card(id=name), folder=tmp_path / name) for name in ("nothing", "obedient", "deaf")]
    presenter = SegmentPresenter(scene=scene, engine=engine, registry=FakeRegistry(*cards))
    presenter.enter()
    presenter.set_volume(ct)
    yield presenter
    presenter.close()


def running(presenter):
    return until(presenter, lambda state: state.phase == "running")


def test_devices_plan_and_a_run(presenter, ct):                                                     # noqa: F811
    until(presenter, lambda state: state.device_sentence == "The CPU works.")
    until(presenter, lambda state: state.plan_sentence == "A plan for nothing.")
    presenter.set_model("obedient")
    until(presenter, lambda state: state.plan_sentence == "A plan for obedient.")
    presenter.set_model("nothing")
    presenter.run()
    state = until(presenter, lambda state: not state.busy)
    assert state.phase == "done" and state.detail == "A sentence.", state
    node = ct.GetScene().GetNodeByID(state.segmentation_id)
    assert np.array_equal(read_segments(node, ct, {"liver": 1}).array, ct_volume().array > 0)


@pytest.mark.parametrize("model", ["obedient", "deaf"])
def test_cancel_answers_within_a_second(presenter, model):
    presenter.set_model(model)
    presenter.run()
    running(presenter)
    began = time.monotonic()
    presenter.cancel()
    assert presenter.state.phase == "cancelling" and time.monotonic() - began < 0.1
    state = until(presenter, lambda state: state.phase == "idle")
    assert time.monotonic() - began < 1.5, "a second is promised; the rest is this machine's other work"
    assert state.headline == "Stopped; nothing was changed." and state.segmentation_id is None


def test_a_worker_killed_in_the_middle_costs_one_run(presenter, engine):
    presenter.set_model("obedient")
    presenter.run()
    running(presenter)
    os.kill(engine.worker_pid, signal.SIGKILL)
    state = until(presenter, lambda state: not state.busy)
    assert state.phase == "failed" and "stopped unexpectedly" in state.detail and state.button_enabled
    assert "again" in [offer.action for offer in state.offers]
    presenter.set_model("nothing")
    presenter.run()
    assert until(presenter, lambda state: not state.busy).phase == "done"


def test_a_scene_closed_in_the_middle_frees_the_engine(presenter, scene):                           # noqa: F811
    presenter.set_model("deaf")
    presenter.run()
    running(presenter)
    presenter.scene_closing()
    scene.Clear(False)
    presenter.scene_closed()
    volume = node_from_volume(ct_volume(), scene)
    presenter.set_volume(volume)
    presenter.set_model("nothing")
    presenter.run()
    assert until(presenter, lambda state: not state.busy).phase == "done"
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


# ---------------------------------------------------------------------------------------------- the shipped model


@pytest.fixture(scope="module")
def real_engine(tmp_path_factory):
    pytest.importorskip("torch", reason="torch is missing: no model can be run")
    with EngineClient(temporary=tmp_path_factory.mktemp("private")) as engine:
        yield engine


@pytest.fixture(scope="module")
def part():
    """A block of the shipped CT around the liver: one tile of the model."""
    from HiEndSegLib.geometry.reading import read_volume

    path = next(resource("Sample").glob("*.nii.gz"), None)
    if path is None:
        pytest.skip("the sample CT is not here")
    whole = read_volume(path)
    start = np.eye(4)
    start[:3, 3] = 12, 14, 50
    return dataclasses.replace(whole, array=np.ascontiguousarray(whole.array[12:104, 14:110, 50:110]),
                               ijk_to_ras=whole.ijk_to_ras @ start, name="sample")


def test_a_real_ct_from_the_button_to_finished_nodes(scene, part, real_engine, tmp_path):           # noqa: F811
    volume = node_from_volume(part, scene)
    volume.SetAndObserveTransformNodeID(linear_transform(scene).GetID())
    settings = {}
    presenter = SegmentPresenter(scene=scene, engine=real_engine, registry=Registry(user=tmp_path), settings=settings)
    presenter.enter()
    presenter.set_volume(volume)
    state = presenter.state
    assert state.volume_warning == "" and state.models[0].shipped and "Dice" in state.models[0].score_sentence
    until(presenter, lambda state: state.plan_fits is not None)
    assert "CPU" in presenter.state.device_sentence or "works" in presenter.state.device_sentence
    assert "main memory" in presenter.state.plan_sentence
    presenter.press()
    seen = []
    presenter.changed.connect(lambda: seen.append((presenter.state.phase, presenter.state.fraction)))
    state = until(presenter, lambda state: not state.busy)
    assert state.phase == "done", state.detail
    fractions = [fraction for phase, fraction in seen if phase in ("starting", "running")]
    assert len(fractions) >= 4 and fractions == sorted(fractions)
    rows = {name: (ml, mean) for name, ml, mean in read_table(scene.GetNodeByID(state.table_id))}
    assert rows["Liver"][0] > 300 and 0 < rows["Liver"][1] < 150, rows
    assert "Vertebrae" in rows and rows["Vertebrae"][1] > rows["Liver"][1], rows
    node = scene.GetNodeByID(state.segmentation_id)
    assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    label = next(label for label in Registry(user=tmp_path).get(None).labels if label.id == "liver")
    liver = read_segments(node, volume, {"liver": 1}).array
    assert abs(liver.sum() * part.voxel_ml - rows["Liver"][0]) < 0.01 and label.name == "Liver"
    assert state.models[0].expected_seconds is not None and "speeds" in settings
    presenter.close()


def test_a_damaged_model_fails_with_its_sentence(scene, part, real_engine, tmp_path):               # noqa: F811
    shutil.copytree(resource("Models") / "torso-ct-tiny", tmp_path / "shipped" / "torso")
    weights = tmp_path / "shipped" / "torso" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 0xFF
    weights.write_bytes(content)
    presenter = SegmentPresenter(scene=scene, engine=real_engine, registry=Registry(tmp_path / "shipped", tmp_path))
    presenter.enter()
    presenter.set_volume(node_from_volume(part, scene))
    presenter.run()
    state = until(presenter, lambda state: not state.busy)
    assert state.phase == "failed" and "do not match the checksum" in state.detail, state
    assert [offer.action for offer in state.offers] == ["verify_model", "choose_model"]
    presenter.close()
