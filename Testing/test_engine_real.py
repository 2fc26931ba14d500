"""The engine with the real operations and a small real network: the same with and without the process."""

from __future__ import annotations

import os
import shutil
import signal
import sys

import numpy as np
import pytest
from engine_helpers import finish, gone, leftovers, until
from tiny_models import card_dict

from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.engine.local import LocalEngine
from HiEndSegLib.errors import EngineError, ModelError, OptionError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.registry import USER_FOLDER_VARIABLE, Registry
from HiEndSegLib.operations.devices import probe_devices

NETWORK = {"kind": "pointwise", "num_classes": 3, "in_channels": 1, "img_size": 48, "mask_dim": 4, "taps": [0],
           "vit": {"name": "vit_tiny_12p", "embed_dim": 24, "depth": 2, "num_heads": 2}, "channels": [8, 8, 16],
           "fsad_dim": 16, "fsad_heads": 2, "fsad_depth": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The user's model folder, with one model of random weights."""
    import torch

    from HiEndSegLib.models.card import card_from_dict
    from HiEndSegLib.models.loading import save_model
    from HiEndSegLib.networks.build import build_network

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    card = card_from_dict(card_dict(network=NETWORK, tile=[48, 48, 48], overlap=0.25))
    save_model(card, build_network(card.network), folder / "tiny@1.0.0", dtype="float32")
    patch = pytest.MonkeyPatch()
    patch.setenv(USER_FOLDER_VARIABLE, str(folder))
    patch.setenv("OMP_NUM_THREADS", "1")
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def client(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    with EngineClient(temporary=folder) as client:
        client.folder = folder
        yield client
    assert not leftovers(folder)


def phantom(edge=40):
    """A warm ellipsoid with a dense core in air, oblique, 4 mm."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij"))
    radius = np.sqrt((grid ** 2).sum(0))
    noise = np.random.default_rng(0).normal(0, 20, radius.shape)
    array = np.where(radius < 0.35, 200, np.where(radius < 0.85, 40, -1000)) + noise
    matrix = np.array([[-3.9, 0.5, 0, 70], [0.5, 3.9, 0, -60], [0, 0, 4.0, 1 / 3], [0, 0, 0, 1]])
    return Volume(array.astype(np.int16), matrix, "phantom", {"modality": "CT"})


def test_the_same_result_with_and_without_the_process(client):
    volume, seen = phantom(), []
    options = {"model": "tiny", "device": "cpu", "threads": 1, "precision": "float32"}
    there = client.segment(volume, progress=lambda *step: seen.append(step), **options)
    with LocalEngine() as local:
        here = local.segment(volume, **options)
    np.testing.assert_array_equal(there.labels.array, here.labels.array)
    assert there.labels.same_lattice(volume, 0.0) and there.labels.array.dtype == np.uint8
    assert there.labels.array.any(), "random weights name something"
    assert there.legend == here.legend and there.statistics == here.statistics and there.messages == here.messages
    assert there.info["model"] == here.info["model"] and there.info["parameters"] == here.info["parameters"]
    assert there.info["engine"]["pid"] != here.info["engine"]["pid"] == os.getpid()
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and any("Tile" in text for _, text in seen)


def test_the_model_stays_warm_until_another_is_asked_for(client, models):
    first = client.segment(phantom(), model="tiny", device="cpu").info["engine"]
    second = client.segment(phantom(), model=models / "tiny@1.0.0", device="cpu").info["engine"]
    assert second["model_was_warm"] and second["pid"] == first["pid"]
    from HiEndSegLib.models.loading import load_model, save_model

    card = Registry(user=models).get("tiny")
    network = load_model(card).network
    for parameter in network.parameters():
        parameter.data.mul_(1.01)
    other = save_model(card, network, models.parent / "retrained", dtype="float32")
    third = client.segment(phantom(), model=other, device="cpu").info
    assert not third["engine"]["model_was_warm"] and third["model"]["sha256"] == other.checksum != card.checksum


def test_real_errors_come_through_with_their_class(client, models, tmp_path):
    with pytest.raises(OptionError, match="liver"):
        client.segment(phantom(), model="tiny", only=["thumb"])
    with pytest.raises(OptionError, match="no model 'nothing'"):
        client.segment(phantom(), model="nothing")
    with pytest.raises(OptionError, match="region of interest"):
        client.segment(phantom(), model="tiny", roi=((900, 990), (900, 990), (900, 990)))
    broken = shutil.copytree(models / "tiny@1.0.0", tmp_path / "broken")
    data = bytearray((broken / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (broken / "weights.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="checksum|altered"):
        client.segment(phantom(), model=broken)
    assert client.segment(phantom(), model="tiny", only=["liver"]).legend[0].id == "liver"


def test_only_and_roi_reach_the_operation(client):
    result = client.segment(phantom(), model="tiny", device="cpu", only=["kidney_left"], roi=((-20, 20),) * 3)
    assert [label.id for label in result.legend] == ["kidney_left"]
    assert set(np.unique(result.labels.array)) <= {0, 2}
    assert result.info["parameters"]["roi"] == [[-20.0, 20.0]] * 3


def test_plan_and_doctor(client):
    volume = phantom()
    probe_devices.cache_clear()                     # another test may have looked with another number of threads
    plan = client.plan(volume, model="tiny", device="cpu")
    with LocalEngine() as local:
        here = local.plan(volume, model="tiny", device="cpu")
        report = local.doctor()
    assert (plan.tiles, plan.model_shape, plan.bytes_host) == (here.tiles, here.model_shape, here.bytes_host)
    assert type(plan) is type(here) and type(plan.steps[0]) is type(here.steps[0]) and "tiles" in plan.sentence
    there = client.doctor()
    assert there == report and there["versions"]["torch"] and there["devices"][-1]["kind"] == "cpu"
    assert {"id": "tiny", "version": "1.0.0", "title": "Tiny test model"} in there["models"]
    assert any("CPU" in sentence for sentence in there["sentences"])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_killed_while_loading_and_the_next_job_works(client, models):
    assert client.doctor() and client.worker_pid
    os.kill(client.worker_pid, signal.SIGKILL)
    gone(client.worker_pid)
    job = client.submit_segment(phantom(), model="tiny", device="cpu")
    until(lambda: "Loading" in job.progress.message, job)
    pid = client.worker_pid
    os.kill(pid, signal.SIGKILL)
    finish(job)
    assert isinstance(job.error, EngineError) and "signal 9" in job.error.sentence and not leftovers(client.folder)
    after = client.segment(phantom(), model="tiny", device="cpu").info["engine"]
    assert after["pid"] != pid and not after["model_was_warm"]
