"""Looking into models through the engines: a volume is handed over once, models are compared, versions work alike."""

from __future__ import annotations

import attention_models as am
import numpy as np
import pytest
import torch
from tiny_models import LABELS, write_tiny

from HiEndSegLib.engine import transfer
from HiEndSegLib.engine.attending import IMAGES, MODELS
from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.engine.library import Library
from HiEndSegLib.engine.local import LocalEngine
from HiEndSegLib.errors import HiEndSegError, OptionError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.operations.attend import attend
from HiEndSegLib.operations.attend_result import AttentionResult, LayerRank, QueriesResult, UncertaintyResult


def write(folder, seed=0, **changes):
    """A real MaskMed in a model folder."""
    def build(config):
        torch.manual_seed(seed)
        return am.spread_out(build_network(config), std=0.3 + 0.2 * seed)

    return write_tiny(folder, build=build, **{"network": am.MASKMED, "labels": LABELS, **changes})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"one": str(write(root / "one", id="one")), "two": str(write(root / "two", 1, id="two")),
            "three": str(write(root / "three", 2, id="three")),
            "fine": str(write(root / "fine", id="fine", spacing=[2, 2, 2]))}


@pytest.fixture(scope="module")
def volume():
    matrix = np.array([[2.0, 0.3, 0, -30], [-0.3, 2.0, 0, 12], [0, 0, -3.0, 90], [0, 0, 0, 1]])
    array = np.random.default_rng(0).normal(40, 80, (40, 38, 30)).astype(np.int16)
    array[:4] = -1000
    return Volume(array, matrix, "Anna^Maria", {"modality": "CT"})


def middle(volume, add=0.0):
    return tuple(float(v) for v in (volume.ijk_to_ras @ [20 + add, 19, 15, 1.0])[:3])


class _Spying:
    """A library whose preparations of images and loadings of models are counted."""

    def __init__(self, monkeypatch):
        from HiEndSegLib.models import loading
        from HiEndSegLib.operations import attend_session

        self.prepared, self.loaded = [], []
        prepare, load = attend_session.prepare_image, loading.load_model
        monkeypatch.setattr(attend_session, "prepare_image",
                            lambda volume, spacing: self.prepared.append(spacing) or prepare(volume, spacing))
        monkeypatch.setattr(loading, "load_model",
                            lambda card, *a, **k: self.loaded.append(card.id) or load(card, *a, **k))
        self.library = Library()


def test_a_volume_is_handed_over_once_and_dragging_needs_its_key_alone(models, volume):
    with EngineClient() as engine:
        with pytest.raises(HiEndSegError, match="hand it over again") as caught:
            engine.submit_attend(None, volume_key="ct", at=middle(volume), model=models["one"]).result()
        assert caught.value.code == "unknown-volume"
        first = engine.submit_attend(volume, volume_key="ct", at=middle(volume), layers=[1, 3], heads="all",
                                     model=models["one"]).result()
        assert isinstance(first, AttentionResult) and len(first.maps) == 6
        pid = engine.worker_pid
        for step in (0.5, 1.0):
            job = engine.submit_attend(None, volume_key="ct", at=middle(volume, step), layers=[3], model=models["one"])
            moved = job.result()
            assert moved.info["window_was_warm"] and engine.worker_pid == pid
        with pytest.raises(OptionError, match="lies outside the volume"):
            engine.submit_attend(None, volume_key="ct", at=(9999, 0, 0), model=models["one"]).result()
        with pytest.raises(OptionError, match="no block 9"):
            engine.submit_attend(None, volume_key="ct", layers=[9], model=models["one"]).result()
        ranks = engine.submit_ranks(None, volume_key="ct", model=models["one"]).result()
        assert [type(row) for row in ranks] == 4 * [LayerRank]
        queries = engine.submit_inspect_queries(None, volume_key="ct", model=models["one"]).result()
        assert isinstance(queries, QueriesResult) and len(queries.queries) == 4
        assert isinstance(queries.queries[0].classes[0], tuple)
        unsure = engine.submit_uncertainty(volume, model=models["one"], device="cpu").result()
        assert isinstance(unsure, UncertaintyResult) and unsure.entropy.same_lattice(volume)
        head = engine.submit_attend(None, volume_key="ct", kind="head", query=1, model=models["one"]).result()
        assert head.kind == "head" and head.object_query == 1
        engine.submit_forget_volume("ct").result()
        with pytest.raises(HiEndSegError) as caught:
            engine.submit_attend(None, volume_key="ct", model=models["one"]).result()
        assert caught.value.code == "unknown-volume"
        assert not any("Anna" in line for line in job.log)


def test_both_engines_give_what_the_operation_gives(models, volume):
    from HiEndSegLib.models.card import read_card
    from HiEndSegLib.models.loading import load_model

    direct = attend(load_model(read_card(models["one"])), volume, at=middle(volume), layers=[2], device="cpu")
    with LocalEngine() as engine:
        other = engine.submit_attend(volume, volume_key="k", at=middle(volume), layers=[2], device="cpu",
                                     model=models["one"]).result()
    np.testing.assert_allclose(other.maps[0].weights, direct.maps[0].weights, atol=1e-6)
    np.testing.assert_array_equal(other.maps[0].ijk_to_ras, direct.maps[0].ijk_to_ras)
    assert other.sentences == direct.sentences


def test_two_models_side_by_side_are_loaded_once_and_a_third_pushes_one_out(models, volume, monkeypatch):
    spy = _Spying(monkeypatch)

    def look(name, give=False):
        return spy.library.attend(volume=volume if give else None, volume_key="ct", at=middle(volume), layers=[1],
                                  heads="mean", kind="encoder", mask=None, query=None, structure=None,
                                  model=models[name], device="cpu")

    a, b = look("one", give=True), look("two")
    assert np.abs(a.maps[0].weights - b.maps[0].weights).max() > 1e-4
    for _ in range(2):
        look("one")
        look("two")
    assert spy.loaded == ["one", "two"] and len(spy.prepared) == 1 and MODELS == 2
    look("three")
    look("two")
    assert spy.loaded == ["one", "two", "three"]           # "one" went, "two" stayed
    with pytest.raises(HiEndSegError) as caught:
        look("fine")                                       # another spacing: the voxels are needed again
    assert caught.value.code == "unknown-volume"
    look("fine", give=True)
    look("two")
    assert len(spy.prepared) == 2


def test_a_segmentation_lets_go_of_models_and_keeps_the_images(models, volume, monkeypatch):
    spy = _Spying(monkeypatch)
    question = {"volume_key": "ct", "at": middle(volume), "device": "cpu"}
    spy.library.attend(volume=volume, model=models["one"], **question)
    spy.library.segment(volume=volume, model=models["two"], device="cpu", roi=None)
    assert not spy.library._kept.sessions
    spy.library.attend(volume=None, model=models["one"], **question)
    assert spy.loaded == ["one", "two", "one"] and len(spy.prepared) == 1


def test_another_volume_under_an_old_key_is_noticed_and_few_are_kept(models, volume, monkeypatch):
    spy = _Spying(monkeypatch)

    def look(given, key="ct"):
        return spy.library.attend(volume=given, volume_key=key, model=models["one"], device="cpu", layers=[1])

    first = look(volume)
    look(volume)
    assert len(spy.prepared) == 1
    look(Volume(volume.array.copy(), volume.ijk_to_ras.copy(), "same", volume.meta))
    assert len(spy.prepared) == 1                          # the same voxels in the same place
    shifted = volume.ijk_to_ras.copy()
    shifted[:3, 3] += 5
    second = look(Volume(volume.array, shifted, "moved", volume.meta))
    assert len(spy.prepared) == 2
    np.testing.assert_allclose(second.maps[0].ijk_to_ras[:3, 3] - first.maps[0].ijk_to_ras[:3, 3], 5, atol=1e-6)
    for number in range(IMAGES):
        look(volume, f"key{number}")
    with pytest.raises(HiEndSegError) as caught:
        look(None, "ct")
    assert caught.value.code == "unknown-volume" and len(spy.library._kept.images) == IMAGES


def test_the_worker_keeps_no_voxels(models, volume, monkeypatch):
    """They are mapped from the job's folder, which goes when the job is over."""
    import gc
    import weakref

    given = Volume(volume.array.copy(), volume.ijk_to_ras, "", volume.meta)
    gone = weakref.ref(given.array)
    library = Library()
    library.attend(volume=given, volume_key="ct", model=models["one"], device="cpu")
    del given
    gc.collect()
    assert gone() is None


def test_arguments_in_files_are_known():
    encoded, _ = transfer.encode({"a": [1, ("x", np.zeros(5000))]}, "argument")
    assert transfer.has_files(encoded)
    encoded, _ = transfer.encode({"a": [1, ("x", np.zeros(5))], "b": None}, "argument")
    assert not transfer.has_files(encoded)


def test_a_version_is_looked_into_like_any_model(volume, tmp_path):
    """Its merged weights are what is looked into: the change of one block moves that block's maps, not those before."""
    from version_models import CASE, REPORT, TWO

    from HiEndSegLib.models.loading import load_model
    from HiEndSegLib.models.registry import Registry
    from HiEndSegLib.models.versions import write_version

    write(tmp_path / "shipped" / "base", id="base")
    registry = Registry(tmp_path / "shipped", tmp_path / "user")
    base = registry.get("base")
    weights = load_model(base).network.state_dict()
    name = "encoder.vit.blocks.2.attn.qkv.weight"
    torch.manual_seed(0)
    a, b = torch.randn(2, weights[name].shape[1]), torch.randn(weights[name].shape[0], 2)
    card = write_version(base, name="After one case", network=am.MASKMED, labels=TWO, replaced={},
                         low_rank={name: (a, b)}, report=REPORT, case=CASE, parameters={}, registry=registry)
    before = attend(load_model(base), volume, at=middle(volume), layers=[1, 2, 3], device="cpu")
    after = attend(load_model(card, registry=registry), volume, at=middle(volume), layers=[1, 2, 3], device="cpu")
    assert after.info["model"]["id"] == card.id != before.info["model"]["id"]
    np.testing.assert_array_equal(after.maps[0].weights, before.maps[0].weights)
    assert np.abs(after.maps[1].weights - before.maps[1].weights).max() > 1e-3
    merged = load_model(base)
    with torch.no_grad():
        merged.network.get_parameter(name).add_(b @ a)
    by_hand = attend(merged, volume, at=middle(volume), layers=[2], device="cpu")
    np.testing.assert_allclose(after.maps[1].weights, by_hand.maps[0].weights, atol=1e-4)
