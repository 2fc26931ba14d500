"""Adding, verifying and deleting models with real folders; weights from elsewhere; sentences for what goes wrong."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest
from presenter_helpers import FakeEngine
from tiny_models import card_dict

from HiEndSegLib.engine.interface import JobState
from HiEndSegLib.errors import ModelError
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.presenter.models import ModelsPresenter


def write_model(folder, **changes):
    """A model folder with a sound checksum; the weights are bytes that nothing here opens."""
    import hashlib

    weights = b"not opened by the registry"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(weights)
    entry = {"file": "weights.safetensors", "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights),
             "dtype": "float32"}
    (folder / "card.json").write_text(json.dumps(card_dict(weights=entry, **changes)))
    return folder


class Shelf:
    def __init__(self, tmp_path):
        write_model(tmp_path / "shipped" / "base", id="base", title="Base", default=True)
        self.registry = Registry(tmp_path / "shipped", tmp_path / "user")
        self.engine, self.settings = FakeEngine(), {}
        self.presenter = ModelsPresenter(registry=self.registry, engine=self.engine, settings=self.settings)
        self.told, self.listed = [], []
        self.presenter.changed.connect(lambda: self.told.append(self.presenter.state))
        self.presenter.models_changed.connect(lambda: self.listed.append(1))
        self.presenter.refresh()

    @property
    def state(self):
        return self.presenter.state

    @property
    def ids(self):
        return [row.id for row in self.state.rows]


@pytest.fixture
def shelf(tmp_path):
    shelf = Shelf(tmp_path)
    yield shelf
    shelf.presenter.close()


@pytest.mark.parametrize("how", ["folder", "zip", "card", "weights"])
def test_a_model_is_added_from_whatever_a_person_points_at(shelf, tmp_path, how):
    folder = write_model(tmp_path / "download" / "tiny")
    path = {"folder": folder, "card": folder / "card.json", "weights": folder / "weights.safetensors",
            "zip": tmp_path / "tiny.zip"}[how]
    if how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"tiny/{file.name}")
    shelf.presenter.add(path)
    assert shelf.state.busy and shelf.state.headline.startswith("Adding ")
    shelf.presenter.add(path)                   # one thing at a time
    shelf.presenter.wait()
    assert not shelf.state.busy and not shelf.state.failed
    assert shelf.state.headline == "Tiny test model (tiny@1.0.0) was added."
    assert shelf.ids == ["base@1.0.0", "tiny@1.0.0"] and shelf.listed == [1]
    assert shelf.presenter.folder("tiny@1.0.0") == str(tmp_path / "user" / "tiny@1.0.0")


def test_what_is_no_model_is_refused_in_a_sentence(shelf, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    folder = write_model(tmp_path / "altered")
    (folder / "weights.safetensors").write_bytes(b"NOT opened by the registry")
    for path, words in ((tmp_path / "empty", "has no file card.json"), (tmp_path / "text.txt", "not a readable zip"),
                        (tmp_path / "nowhere", "There is no file or folder"), (folder, "do not match the checksum")):
        shelf.presenter.add(path)
        shelf.presenter.wait()
        assert shelf.state.failed and words in shelf.state.headline, shelf.state.headline
    assert shelf.ids == ["base@1.0.0"]


def test_verify_says_sound_or_what_is_wrong(shelf, tmp_path):
    shelf.presenter.verify("base@1.0.0")
    shelf.presenter.wait()
    assert shelf.state.headline == "Base is sound: card and weights are as they were made."
    weights = tmp_path / "shipped" / "base" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    shelf.presenter.verify("base")
    shelf.presenter.wait()
    assert shelf.state.failed and "do not match the checksum" in shelf.state.headline


def test_folders_that_cannot_be_used_are_listed_with_their_sentence(shelf, tmp_path):
    broken = write_model(tmp_path / "user" / "broken")
    (broken / "card.json").write_text("{")
    shelf.presenter.refresh()
    assert len(shelf.state.problems) == 1 and "not readable JSON" in shelf.state.problems[0]
    shelf.presenter.delete("broken")
    assert "Delete broken" in shelf.state.question.text
    shelf.presenter.answer("delete")
    shelf.presenter.wait()
    assert shelf.state.problems == () and not broken.exists()


def test_deleting_asks_first_and_spares_what_came_with_the_program(shelf, tmp_path):
    shelf.presenter.delete("base@1.0.0")
    assert shelf.state.failed and "came with HiEndSeg" in shelf.state.headline and shelf.state.question is None
    write_model(tmp_path / "user" / "tiny")
    shelf.presenter.refresh()
    shelf.presenter.delete("tiny@1.0.0")
    number = shelf.state.question.number
    shelf.presenter.answer("cancel")
    assert shelf.state.question is None and (tmp_path / "user" / "tiny").exists()
    shelf.presenter.answer("delete")            # nothing is asked any more
    assert not shelf.state.busy
    shelf.presenter.delete("tiny@1.0.0")
    assert shelf.state.question.number > number
    shelf.presenter.answer("delete")
    shelf.presenter.wait()
    assert shelf.ids == ["base@1.0.0"] and not (tmp_path / "user" / "tiny").exists()
    assert shelf.state.headline == "tiny@1.0.0 was deleted."


def test_the_persons_own_folder_is_made_when_it_is_to_be_opened(shelf, tmp_path):
    assert shelf.presenter.folder() == str(tmp_path / "user") and (tmp_path / "user").is_dir()
    shutil.rmtree(tmp_path / "user")
    (tmp_path / "user").write_text("a file in the way")
    shelf.presenter.folder()
    assert shelf.state.failed and "check its permissions" in shelf.state.headline


@pytest.mark.parametrize("facts, failed, words", [
    ({"kind": "hi-end-mae", "shape": "width 1536, 12 blocks and patches of 16"}, False,
     "can be adapted from it with one labeled case, but without a trained head it cannot name any structure"),
    ({"kind": "encoder", "shape": "width 144, 12 blocks and patches of 12"}, False, "Hi-End-MAE encoder (width 144"),
    ({"kind": "unetr", "shape": ""}, True, "without a card"),
    ({"kind": "other", "shape": ""}, True, "does not know"),
    (ModelError("weights.pt is damaged or cut off; download or copy it again."), True, "damaged or cut off")])
def test_weights_from_elsewhere_are_told_what_they_can_do(shelf, tmp_path, facts, failed, words):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"x")
    shelf.presenter.add(path)
    assert shelf.state.busy and shelf.state.headline == "Looking at weights.pt…"
    job = shelf.engine.jobs[-1]
    assert job.operation == "recognize" and job.arguments == {"path": str(path)} and job.state is JobState.RUNNING
    shelf.presenter.tick()
    assert shelf.state.busy
    shelf.engine._end(job, facts if isinstance(facts, ModelError) else {"file": "weights.pt", **facts})
    shelf.presenter.tick()
    assert not shelf.state.busy and shelf.state.failed is failed and words in shelf.state.headline
    assert shelf.settings.get("encoder") == (None if failed else str(path))
    assert shelf.ids == ["base@1.0.0"], "nothing was copied"


def test_an_encoders_folder_is_no_model_and_is_told_so(shelf, tmp_path):
    import hashlib

    from HiEndSegLib.models.encoders import FORMAT, FORMAT_VERSION

    folder, weights = tmp_path / "encoder", b"weights"
    folder.mkdir()
    (folder / "encoder.safetensors").write_bytes(weights)
    description = {"format": FORMAT, "format_version": FORMAT_VERSION, "id": "enc", "version": "1.0.0",
                   "title": "A small encoder", "variant": "vit_tiny_12p", "modality": "CT", "spacing": 1.5,
                   "window": [-175, 250], "crop": 96, "licence": "CC0", "provenance": "Made by a test.",
                   "network": {"embed_dim": 144, "depth": 12, "num_heads": 3, "patch_size": 12, "in_channels": 1,
                               "mlp_ratio": 4.0},
                   "weights": {"file": "encoder.safetensors", "sha256": hashlib.sha256(weights).hexdigest(),
                               "bytes": len(weights), "dtype": "float16"}}
    (folder / "description.json").write_text(json.dumps(description))
    for pointed_at in (folder, folder / "encoder.safetensors", folder / "description.json"):
        shelf.settings.clear()
        shelf.presenter.add(pointed_at)
        assert shelf.state.busy
        shelf.presenter.wait()
        assert not shelf.state.failed and shelf.settings["encoder"] == str(folder), shelf.state.headline
        assert shelf.state.headline.startswith("A small encoder is an encoder: a model can be adapted from it")
    (folder / "encoder.safetensors").write_bytes(b"altered")
    shelf.presenter.add(folder)
    shelf.presenter.wait()
    assert shelf.state.failed and "checksum" in shelf.state.headline and not shelf.state.busy


def test_closing_listens_to_no_answer(tmp_path):
    shelf = Shelf(tmp_path)
    shelf.presenter.add(write_model(tmp_path / "download"))
    before = len(shelf.told)
    shelf.presenter.close()
    shelf.presenter.tick()
    assert len(shelf.told) == before


# ---------------------------------------------------------------------------------------------- what a file is


def test_files_are_recognized_by_their_tensors(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is missing: no weights file can be made")
    from safetensors.torch import save_file

    from HiEndSegLib.engine.local import LocalEngine
    from HiEndSegLib.models.recognize import recognize

    encoder = {"encoder.patch_embed.proj.weight": torch.zeros(24, 1, 12, 12, 12),
               "encoder.blocks.0.norm1.weight": torch.zeros(24), "encoder.blocks.1.norm1.weight": torch.zeros(24)}
    bare = {key.removeprefix("encoder."): value for key, value in encoder.items()}
    whole = {f"module.{key}": value for key, value in {**encoder, "decoder.pred.weight": torch.zeros(2, 2)}.items()}
    torch.save({"state_dict": whole, "epoch": 3}, tmp_path / "official.pt")
    torch.save(encoder, tmp_path / "encoder.pt")
    save_file(bare, tmp_path / "encoder.safetensors")
    torch.save({"vit.blocks.0.x": torch.zeros(1), "encoder1.y": torch.zeros(1)}, tmp_path / "unetr.pt")
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "other.pt")
    kinds = {path.name: recognize(path) for path in tmp_path.iterdir()}
    assert {name: facts["kind"] for name, facts in kinds.items()} == {
        "official.pt": "hi-end-mae", "encoder.pt": "encoder", "encoder.safetensors": "encoder", "unetr.pt": "unetr",
        "other.pt": "other"}
    assert kinds["official.pt"]["shape"] == "width 24, 2 blocks and patches of 12"
    (tmp_path / "torn.pt").write_bytes((tmp_path / "official.pt").read_bytes()[:300])
    with pytest.raises(ModelError, match="cut off"):
        recognize(tmp_path / "torn.pt")
    with LocalEngine() as engine:
        assert engine.submit_recognize(tmp_path / "other.pt").result(60)["kind"] == "other"
