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


# ---------------------------------------------------------------------------------------------- versions


def write_version(shelf, name, parent, date, **changes):
    """A version's folder; its weights are bytes that nothing here opens."""
    import hashlib

    from HiEndSegLib.models.family import reference

    folder = shelf.registry.user / f"{name.lower()}@1.0.0"
    folder.mkdir(parents=True)
    weights = name.encode()
    (folder / "weights.safetensors").write_bytes(weights)
    base = shelf.registry.base_of(parent)
    adaptation = {"base": reference(base), "parent": reference(parent), "name": name, "date": date, "parameters": {},
                  "case": {"fingerprint": "0123456789", "shape": [9, 9, 9], "spacing": [3, 3, 3]}, "report": {},
                  "teaching_cases": 0}
    (folder / "card.json").write_text(json.dumps(card_dict(
        id=name.lower(), title=name, format_version=2, adaptation=adaptation, weights={
            "file": "weights.safetensors", "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights),
            "dtype": "float16"}, **changes)))
    shelf.presenter.refresh()
    return shelf.registry.get(name.lower())


def test_versions_stand_under_their_parent_with_a_sentence(shelf):
    write_model(shelf.registry.user / "alone", id="alone", title="Alone")
    base = shelf.registry.get("base")
    late = write_version(shelf, "Late", base, "2026-09-02T10:00:00+02:00")
    write_version(shelf, "Early", base, "2026-09-01")
    write_version(shelf, "Child", late, "2026-09-03")
    rows = shelf.state.rows
    assert [(row.title, row.depth, row.parent) for row in rows] == [
        ("Base", 0, ""), ("Early", 1, "base@1.0.0"), ("Late", 1, "base@1.0.0"), ("Child", 2, "late@1.0.0"),
        ("Alone", 0, "")]
    assert rows[0].default and not any(row.default for row in rows[1:])
    assert [row.adapted_sentence for row in rows] == [
        "", "Adapted from Base on 2026-09-01.", "Adapted from Base on 2026-09-02.", "Adapted from Late on 2026-09-03.",
        ""]
    shelf.presenter.delete("late")
    shelf.presenter.answer("delete")
    shelf.presenter.wait()
    child = next(row for row in shelf.state.rows if row.title == "Child")
    assert (child.parent, child.depth, child.adapted_sentence) == (
        "base@1.0.0", 1, "Adapted from Late on 2026-09-03."), "a parent that is gone is still named"


def test_the_chosen_versions_sentence_says_where_it_comes_from(shelf):
    from HiEndSegLib.presenter.catalogue import Catalogue

    write_version(shelf, "Liver", shelf.registry.get("base"), "2026-09-01")
    catalogue = Catalogue(shelf.registry, {})
    catalogue.refresh()
    assert catalogue.card.id == "base" and "Adapted" not in catalogue.sentence(None)
    assert catalogue.choose("liver") and catalogue.sentence(None).startswith("Adapted from Base on 2026-09-01. ")
    catalogue.filter = "liver"
    assert [(row.id, row.depth) for row in catalogue.rows(lambda card: None)][-1] == ("liver@1.0.0", 1)


def test_a_base_that_versions_need_is_not_even_asked_about(shelf):
    write_model(shelf.registry.user / "own", id="own", title="Own", description="other")
    (shelf.registry.user / "own" / "weights.safetensors").write_bytes(b"others")
    card = json.loads((shelf.registry.user / "own" / "card.json").read_text())
    import hashlib
    card["weights"].update(sha256=hashlib.sha256(b"others").hexdigest(), bytes=6)
    (shelf.registry.user / "own" / "card.json").write_text(json.dumps(card))
    write_version(shelf, "Liver", shelf.registry.get("own"), "2026-09-01")
    shelf.presenter.delete("own")
    assert shelf.state.question is None and shelf.state.failed
    assert shelf.state.headline == "Own is needed by what was adapted from it (Liver); delete that first."
    shutil.rmtree(shelf.registry.user / "own")
    shelf.presenter.refresh()
    assert shelf.ids == ["base@1.0.0"] and "own@1.0.0, which is not installed" in shelf.state.problems[0]


def test_exporting_a_version_says_what_its_reader_needs(shelf, tmp_path):
    write_version(shelf, "Liver", shelf.registry.get("base"), "2026-09-01")
    for id_, told in (("liver@1.0.0", "a.zip was written. It holds changes only: whoever adds it needs the model "
                                      "base@1.0.0."), ("base", "a.zip was written.")):
        shelf.presenter.export(id_, tmp_path / "a.zip")
        assert shelf.state.busy
        shelf.presenter.wait()
        assert not shelf.state.failed and shelf.state.headline == told
        assert zipfile.is_zipfile(tmp_path / "a.zip")
    for answer, told in ((str(tmp_path / "b.zip"), "b.zip was written. It is a model of its own: whoever adds it needs "
                                                   "no other."), (ModelError("The base is gone."), "The base is gone.")):
        shelf.presenter.export("liver", tmp_path / "b.zip", whole=True)
        job = shelf.engine.jobs[-1]
        assert job.operation == "export" and shelf.state.busy                   # merging is the engine's work
        assert job.arguments == {"model": str(shelf.registry.user / "liver@1.0.0"), "path": str(tmp_path / "b.zip")}
        shelf.engine._end(job, answer)
        shelf.presenter.tick()
        assert (shelf.state.headline, shelf.state.busy) == (told, False)
        assert shelf.state.failed == isinstance(answer, ModelError)
    shelf.presenter.export("liver", tmp_path / "no such folder" / "a.zip")
    shelf.presenter.wait()
    assert shelf.state.failed and "does not exist" in shelf.state.headline


def test_cases_kept_beside_a_version_are_shown_and_forgotten_when_asked(shelf):
    card = write_version(shelf, "Liver", shelf.registry.get("base"), "2026-09-01")
    assert not any(row.teaching for row in shelf.state.rows)
    (card.folder / "teaching.npz").write_bytes(b"parts of images")
    shelf.presenter.refresh()
    assert [row.title for row in shelf.state.rows if row.teaching] == ["Liver"]
    shelf.presenter.forget_teaching("liver")
    assert "Delete the parts of images that are kept beside Liver, and what" in shelf.state.question.text
    shelf.presenter.answer("cancel")
    assert (card.folder / "teaching.npz").exists()
    shelf.presenter.forget_teaching("liver")
    shelf.presenter.answer("forget")
    shelf.presenter.wait()
    assert shelf.state.headline == "Liver keeps no parts of images any more." and not shelf.state.failed
    assert not (card.folder / "teaching.npz").exists() and not any(row.teaching for row in shelf.state.rows)
    assert shelf.ids == ["base@1.0.0", "liver@1.0.0"]


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
