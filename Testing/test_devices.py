"""Devices: every one is tried before it is trusted, and what was found is said."""

from __future__ import annotations

import time

import pytest
import torch

from HiEndSegLib.errors import DeviceError, OptionError
from HiEndSegLib.operations import devices
from HiEndSegLib.operations.devices import (choose_device, cpu_threads, free_bytes, half_pays_on_cpu,
                                            is_out_of_memory, probe_devices, thread_count)
from segment_networks import BandNetwork


@pytest.fixture(autouse=True)
def fresh_probe():
    probe_devices.cache_clear()
    yield
    probe_devices.cache_clear()


def pretend(monkeypatch, differences):
    """Stand-in cards: kind -> what the trial convolution gives (a difference, or an exception)."""
    def trial(kind):
        if isinstance(differences[kind], Exception):
            raise differences[kind]
        return differences[kind]

    monkeypatch.setattr(devices, "_accelerators", lambda: list(differences))
    monkeypatch.setattr(devices, "_name_and_memory", lambda kind: (f"Pretended {kind}", 8 << 30))
    monkeypatch.setattr(devices, "_try_convolution", trial)


def test_the_convolution_itself():
    assert devices._try_convolution("cpu") == 0.0


def test_no_accelerator(monkeypatch):
    pretend(monkeypatch, {})
    (cpu,) = probe_devices()
    assert cpu.kind == "cpu" and cpu.works and cpu.memory_bytes > 1e8
    assert cpu.sentence.startswith("No CUDA device was found; the CPU is used, ")
    assert choose_device("auto").kind == choose_device(" CPU ").kind == "cpu"
    with pytest.raises(DeviceError, match="cuda:0 was asked for, and only cpu is here; choose cpu or auto"):
        choose_device("cuda")


def test_a_working_card_comes_first(monkeypatch):
    pretend(monkeypatch, {"cuda:0": 1e-6, "cuda:1": 1e-6})
    assert [s.kind for s in probe_devices()] == ["cuda:0", "cuda:1", "cpu"]
    assert choose_device("auto").kind == choose_device("cuda").kind == "cuda:0"
    assert choose_device("cuda:1").sentence == "Pretended cuda:1 works, 8 GiB."


@pytest.mark.parametrize("answer, words", [
    (RuntimeError("no kernel image is available"), "does not work (no kernel image is available)"),
    (0.5, "computes wrongly (a small convolution differs from the CPU's by 0.5"), (float("nan"), "computes wrongly")])
def test_a_card_that_does_not_work_is_not_used(monkeypatch, answer, words):
    pretend(monkeypatch, {"cuda:0": answer})
    status = probe_devices()[0]
    assert not status.works and words in status.sentence
    assert choose_device("auto").kind == "cpu" and choose_device("auto").sentence.startswith("No accelerator works")
    with pytest.raises(DeviceError) as caught:
        choose_device("cuda:0")
    assert words in str(caught.value) and str(caught.value).endswith("Choose the device cpu or auto.")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:1", "", "cuda:0:1"])
def test_unknown_names(name):
    with pytest.raises(OptionError, match="choose auto, cuda, mps or cpu"):
        choose_device(name)


def test_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert thread_count() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= thread_count() and thread_count(0) == 1 and thread_count(10 ** 6) >= thread_count()
    before = torch.get_num_threads()
    with pytest.raises(KeyError), cpu_threads(1) as count:
        assert count == 1 == torch.get_num_threads()
        raise KeyError
    assert torch.get_num_threads() == before


def test_out_of_memory_is_recognised():
    assert all(map(is_out_of_memory, (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
                                      RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                                      RuntimeError("MPS backend out of memory"),
                                      RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


def test_container_limits(tmp_path):
    assert devices._container_room(str(tmp_path)) > 1e15
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 400000000\n")
    assert devices._container_room(str(tmp_path)) == 2_400_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices._container_room(str(tmp_path)) > 1e15
    assert 0 < free_bytes("cpu") < 1e15


class Timed(BandNetwork):
    """Spins longer without bfloat16 (or with it, where `slow_half`)."""

    def __init__(self, slow_half):
        super().__init__()
        self.slow_half = slow_half

    def scores(self, x):
        half = torch.is_autocast_enabled("cpu")
        until = time.process_time() + (0.03 if half == self.slow_half else 0.0)
        while time.process_time() < until:
            pass
        return super().scores(x)


class WholeTiles(Timed):
    """Takes one size only."""

    def scores(self, x):
        if x.shape[-1] != 8:
            raise ValueError("this network takes 8 voxels")
        return super().scores(x)


def test_half_precision_on_the_cpu_only_where_it_pays(monkeypatch):
    def tile():
        return torch.rand(1, 1, 8, 8, 8)

    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)
    network = Timed(slow_half=False)
    assert not half_pays_on_cpu(network, tile) and not network.calls
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    assert half_pays_on_cpu(network, tile) and len(network.calls) == 5
    assert half_pays_on_cpu(network, tile) and len(network.calls) == 5      # asked once
    assert not half_pays_on_cpu(Timed(slow_half=True), tile)
    whole = WholeTiles(slow_half=False)
    assert half_pays_on_cpu(whole, tile) and len(whole.calls) == 5
