"""The Adapt section on the real engine: a worker process teaches a tiny model; what it wrote is used and deleted."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from bridge_scene import scene, slicer                                                              # noqa: F401

pytest.importorskip("torch", reason="torch is missing: no model can be taught")

from adapt_phantoms import LEGEND, phantom, untrained                                               # noqa: E402

from HiEndSegLib.bridge.layers import read_segments                                                 # noqa: E402
from HiEndSegLib.bridge.segmentations import segmentation_from_labels                               # noqa: E402
from HiEndSegLib.bridge.volumes import node_from_volume                                             # noqa: E402
from HiEndSegLib.engine.client import EngineClient                                                  # noqa: E402
from HiEndSegLib.models.card import read_card                                                       # noqa: E402
from HiEndSegLib.models.loading import save_model                                                   # noqa: E402
from HiEndSegLib.models.registry import USER_FOLDER_VARIABLE, Registry                              # noqa: E402
from HiEndSegLib.presenter.adapt import AdaptPresenter                                              # noqa: E402
from HiEndSegLib.presenter.segment import SegmentPresenter                                          # noqa: E402

OPERATIONS = str(Path(__file__).with_name("adapt_operations.py"))


class Window:
    """Both sections on one engine, driven as a face's timer drives them."""

    def __init__(self, scene, engine, models):                                                      # noqa: F811
        self.settings = {"device": "cpu"}
        shared = {"scene": scene, "engine": engine, "registry": Registry(models.parent / "none", models),
                  "settings": self.settings}
        self.segment = SegmentPresenter(**shared)
        self.adapt = AdaptPresenter(segment=self.segment, **shared)
        self.segment.enter()
        self.adapt.enter()

    def until(self, condition, seconds=300.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.adapt.state
            self.segment.tick()
            self.adapt.tick()
            time.sleep(0.01)
        return self.adapt.state

    def close(self):
        self.adapt.close()
        self.segment.close()


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_case_teaches_a_version_that_is_used_shown_and_deleted(scene, tmp_path, monkeypatch):   # noqa: F811
    models = tmp_path / "models"
    monkeypatch.setenv(USER_FOLDER_VARIABLE, str(models))
    parent = untrained()
    # What has just begun to learn draws stray parts, and which of them is the largest is chance.
    labels_as_found = [replace(label, largest_component=False) for label in parent.card.labels]
    parent = replace(parent, card=replace(parent.card, labels=labels_as_found))
    save_model(parent.card, parent.network, models / parent.card.key, dtype="float32")
    checksum = read_card(models / parent.card.key).checksum
    before = files(models)
    image, labels = phantom()
    volume = node_from_volume(image, scene, name="case")
    drawn = segmentation_from_labels(labels, LEGEND, volume, name="drawn")
    mine = scene.GetNumberOfNodes()
    with EngineClient(temporary=tmp_path, worker_arguments=("--test-operations", OPERATIONS)) as engine:
        window = Window(scene, engine, models)
        adapt, segment = window.adapt, window.segment
        segment.set_volume(volume)
        assert adapt.state.segmentation_id == drawn.GetID() and adapt.state.model_id == "tiny@1.0.0"
        adapt.compare()
        window.until(lambda: not adapt.busy)
        state = adapt.state
        assert state.phase == "ready", state
        assert [(row.id, row.is_new) for row in state.rows] == [
            ("liver", False), ("kidney_left", False), ("kidney_right", False), ("stomach", True)]
        assert state.rows[0].checked and state.rows[0].dice < 0.5 and not state.rows[3].checked
        for row in state.rows:
            adapt.check(row.id, row.id in ("liver", "stomach"))
        state = window.until(lambda: adapt.state.speeds[0].fits is not None)
        assert state.speed == "quick" and state.speeds[0].minutes > 0 and state.speeds[0].memory
        adapt.set_name("What I drew")
        adapt.press()
        window.until(lambda: adapt.state.finish_available or not adapt.busy)
        assert adapt.state.phase == "running" and adapt.state.chart_id, adapt.state
        window.until(lambda: max(point.dice or 0 for point in adapt.state.curve) > 0.55 or not adapt.busy)
        adapt.finish()
        assert adapt.state.phase == "finishing"
        state = window.until(lambda: not adapt.busy)
        assert state.phase == "done" and state.result_key, state
        rows = {row.id: row for row in state.table}
        assert set(rows) >= {"liver", "stomach"} and rows["liver"].taught
        assert rows["liver"].dice_after > rows["liver"].dice_before + 0.1 and rows["liver"].verdict == "better"
        assert {path: content for path, content in files(models).items() if path in before} == before
        card = next(card for card in Registry(tmp_path / "none", models).list() if card.key == state.result_key)
        assert card.title == "What I drew" and [label.id for label in card.labels][-1] == "stomach"
        assert card.adaptation["parent"]["sha256"] == checksum

        adapt.use_now()
        assert segment.state.model_id == state.result_key
        assert [row.id for row in segment.state.structures][-1] == "stomach"
        adapt.show_overlay(True)
        window.until(lambda: adapt.state.overlay_ids or adapt.state.overlay_sentence and not adapt.state.overlay_shown)
        old, new = (scene.GetNodeByID(id_) for id_ in adapt.state.overlay_ids)
        liver = [read_segments(node, volume, {"liver": 1}).array for node in (old, new)]
        truth = labels.array == 1
        dice = [2 * (found * truth).sum() / (found.sum() + truth.sum()) for found in liver]
        assert dice[1] > dice[0] + 0.1, dice
        adapt.revert()
        assert segment.state.model_id == "tiny@1.0.0" and adapt.state.question.id == "delete"
        adapt.answer("delete")
        assert files(models) == before and adapt.state.result_key is None
        window.close()
        assert scene.GetNumberOfNodes() == mine, "outlines and chart are gone"
        assert "adapt_times" not in window.settings, "a run that was ended early says nothing about a whole one"
