"""Versions among other models: removing, sharing as one file, taking in, order in lists, the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from cli_helpers import NETWORK as REAL_NETWORK
from cli_helpers import files_in, run, write_real_model
from version_models import TWO, adaptation, build_small, factors, shelf, write_base

from HiEndSegLib.errors import Cancelled, ModelError, OptionError, OutputError
from HiEndSegLib.models.card import card_from_dict, card_to_dict, write_card
from HiEndSegLib.models.family import family_order, free_name
from HiEndSegLib.models.loading import load_model
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.models.teaching import TeachingCase, has_teaching
from HiEndSegLib.models.versions import export_version, write_version
from HiEndSegLib.tasks import CancelToken


@pytest.fixture
def registry(tmp_path):
    return shelf(tmp_path)


@pytest.fixture
def other(tmp_path, registry):
    """Somebody else's computer, with the same base."""
    return Registry(registry.shipped, tmp_path / "colleague")


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def kept_case():
    voxels = np.zeros((4, 4, 4))
    return TeachingCase("ab" * 8, voxels.astype(np.int16), voxels.astype(np.uint8), {1: "liver"}, (3, 3, 3))


def check(registry):
    return lambda card: load_model(card, build=build_small, registry=registry)


# ------------------------------------------------------------------------------------------------ removing, order


def test_a_base_stays_as_long_as_versions_need_it(registry):
    base = write_base(registry.user / "mine@1.0.0", seed=4, id="mine", title="Mine", default=False)
    for number in range(1, 8):
        write_version(base, registry=registry, **adaptation(f"V {number}", number))
    with pytest.raises(ModelError, match=r"mine@1.0.0 is needed by V 1 \(v-1@1.0.0\), .* and 2 more, which are made"):
        registry.remove("mine")
    for number in range(1, 8):
        registry.remove(f"v-{number}")
    assert registry.remove("mine") == base.folder and names(registry.user) == []


def test_every_version_stands_under_its_parent_in_the_order_of_dates(registry):
    base = registry.get()
    late = write_version(base, registry=registry, **adaptation("A late", 9))
    early = write_version(base, registry=registry, **adaptation("Z early", 2))
    write_version(early, registry=registry, **adaptation("B child", 5))
    write_base(registry.user / "second", seed=2, id="second", title="Second", default=False)
    told = [(card.id, parent and parent.id) for card, parent in family_order(registry.list())]
    assert told == [("base", None), ("z-early", "base"), ("b-child", "z-early"), ("a-late", "base"), ("second", None)]
    registry.remove("z-early")
    told = [(card.id, parent and parent.id) for card, parent in family_order(registry.list())]
    assert told == [("base", None), ("b-child", "base"), ("a-late", "base"), ("second", None)]
    assert registry.versions_of(late) == [] and registry.parent_of(base) is None


def test_cards_that_name_each_other_as_parents_are_listed_once(registry):
    cards = [write_version(registry.get(), registry=registry, **adaptation(name, number))
             for number, name in enumerate("AB", 1)]
    for card, parent in (cards, cards[::-1]):
        write_card(dataclasses.replace(card, adaptation={**card.adaptation, "parent": {
            "id": parent.id, "version": parent.version, "sha256": parent.checksum}}), card.folder)
    told = [(card.id, parent and parent.id) for card, parent in family_order(registry.list())]
    assert told == [("base", None), ("a", None), ("b", "a")]


def test_free_names_count_on(registry):
    cards = [registry.get()]
    assert free_name("Liver", cards) == "Liver" and free_name("base", cards) == "base 2"
    titled = [dataclasses.replace(cards[0], title=title) for title in ("Liver 9", "Liver", "x" * 100)]
    assert free_name("Liver 9", titled) == "Liver 10" and free_name("liver", titled) == "liver 2"
    assert free_name("x" * 100, titled) == "x" * 98 + " 2"


# ------------------------------------------------------------------------------------------------ sharing


def test_one_file_goes_to_a_colleague_without_the_teaching_set(registry, other, tmp_path):
    card = write_version(registry.get(), registry=registry, teaching=[kept_case()], **adaptation("Liver"))
    assert has_teaching(card) and card.adaptation["teaching_cases"] == 1
    path = export_version(card, tmp_path / "liver")
    assert path == tmp_path / "liver.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["liver/card.json", "liver/weights.safetensors"]
    added = other.add(path, check=check(other))
    assert added.title == "Liver" and dataclasses.replace(added, folder=card.folder) == card and not has_teaching(added)
    mine, theirs = (load_model(one, build=build_small, registry=where).network.state_dict()
                    for one, where in ((card, registry), (added, other)))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(ModelError, match="Model liver@1.0.0 is installed already"):
        other.add(path)
    with pytest.raises(OutputError, match="exists already and is not overwritten"):
        export_version(card, path)
    assert export_version(card, path, overwrite=True) == path


def test_without_the_base_a_version_is_not_taken_and_the_base_is_named(registry, tmp_path):
    path = export_version(write_version(registry.get(), registry=registry, **adaptation("Liver")), tmp_path / "a.zip")
    elsewhere = Registry(tmp_path / "none", tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="changes to the model base@1.0.0, which is not installed; add that model"):
        elsewhere.add(path)
    assert names(elsewhere.user) == []
    write_base(tmp_path / "elsewhere" / "base", seed=7)
    with pytest.raises(ModelError, match="it was changed since"):
        elsewhere.add(path)
    assert names(elsewhere.user) == ["base"]


def test_with_the_base_merged_in_it_is_a_model_of_its_own(registry, tmp_path, monkeypatch):
    from HiEndSegLib.models import loading

    monkeypatch.setattr(loading, "_default_builder", lambda: build_small)
    card = write_version(registry.get(), registry=registry, **adaptation("Liver"))
    path = export_version(card, tmp_path / "whole.zip", whole=True, registry=registry)
    elsewhere = Registry(tmp_path / "none", tmp_path / "elsewhere")
    added = elsewhere.add(path, check=check(elsewhere))
    assert not added.is_version and added.title == "Liver" and added.training["adaptation"]["name"] == "Liver"
    mine, theirs = (load_model(one, build=build_small, registry=where).network.state_dict()
                    for one, where in ((card, registry), (added, elsewhere)))
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-3) for name in mine)


def test_a_name_that_is_in_use_there_gets_the_next_free_one(registry, other, tmp_path):
    theirs = write_version(other.get(), registry=other, **adaptation("Liver", 1))
    mine = write_version(registry.get(), registry=registry, **adaptation("Liver", 2))
    added = other.add(export_version(mine, tmp_path / "a.zip"), check=check(other))
    assert (added.key, added.title, added.adaptation["name"]) == ("liver-2@1.0.0", "Liver 2", "Liver 2")
    assert added.checksum == mine.checksum != theirs.checksum
    assert [card.title for card in other.list()] == ["Base", "Liver", "Liver 2"]
    with pytest.raises(ModelError, match="liver-2@1.0.0 is installed already"):
        other.add(tmp_path / "a.zip")


def repack(path, target, change):
    """The same .zip with other contents: change(name, raw) -> raw or None."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            raw = change(name, old.read(name))
            if raw is not None:
                new.writestr(name, raw)
    return target


def _card(**changes):
    def change(name, raw):
        return json.dumps({**json.loads(raw), **changes}).encode() if name.endswith("card.json") else raw
    return change


@pytest.mark.parametrize("change, words", [
    (lambda name, raw: raw[:-5] + b"12345" if name.endswith("safetensors") else raw, "do not match the checksum"),
    (lambda name, raw: raw + b"more" if name.endswith("safetensors") else raw, "larger than"),
    (lambda name, raw: raw[:-9] if name.endswith("safetensors") else raw, "bytes instead of"),
    (lambda name, raw: None if name.endswith("safetensors") else raw, "has no file weights"),
    (_card(format_version=1), "belongs to cards of format version 2"),
    (_card(adaptation={}), "adaptation.base is missing"),
    (_card(labels=[TWO[0].to_dict()]), "names 1 structures and its network has 3"),
    (_card(network={"kind": "small", "num_classes": 3, "width": 9}), "do not fit the network"),
    (_card(weights={"file": "../../base/weights.safetensors", "sha256": "0" * 64, "bytes": 1, "dtype": "float16"}),
     "points outside"),
])
def test_hostile_and_damaged_files_are_not_taken(registry, other, tmp_path, change, words):
    card = write_version(registry.get(), registry=registry, **adaptation("Liver"))
    path = repack(export_version(card, tmp_path / "a.zip"), tmp_path / "b.zip", change)
    with pytest.raises(ModelError, match=words):
        other.add(path, check=check(other))
    assert names(other.user) == []


def test_a_teaching_set_in_somebodys_file_is_not_unpacked(registry, other, tmp_path):
    card = write_version(registry.get(), registry=registry, **adaptation("Liver"))
    path = export_version(card, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("liver/teaching.npz", b"anything")
    assert names(other.add(path).folder) == ["card.json", "weights.safetensors"]


def test_an_export_that_cannot_be_written_leaves_nothing(registry, tmp_path, monkeypatch):
    card = write_version(registry.get(), registry=registry, **adaptation("Liver"))
    with pytest.raises(OutputError, match="does not exist"):
        export_version(card, tmp_path / "no such folder" / "a.zip")
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        export_version(card, tmp_path / "a.zip", cancel=cancel)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(OutputError, match="disk is full"):
        export_version(card, tmp_path / "a.zip")
    monkeypatch.undo()
    raw = card.weights_path.read_bytes()
    card.weights_path.write_bytes(raw[:-1] + b"!")
    with pytest.raises(ModelError, match="checksum"):
        export_version(card, tmp_path / "a.zip")
    assert not [name for name in names(tmp_path) if name.endswith(".zip") or name.startswith(".")]


# ------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A real tiny network among the user's models, and a version of it."""
    monkeypatch.setenv("HIENDSEG_MODELS", str(tmp_path / "models"))
    registry = Registry()
    write_real_model(registry.user / "tiny")
    base = registry.get("tiny")
    shape = load_model(base).network.state_dict()["encoder.vit.blocks.0.mlp.fc1.weight"].shape
    changes = {**adaptation("My liver"), "build": None, "network": REAL_NETWORK,
               "low_rank": {"encoder.vit.blocks.0.mlp.fc1.weight": factors(1, 1, tuple(shape))},
               "replaced": {"classifier.bias": torch.tensor([0.0, 7.0, 1.0])}}
    return registry, write_version(base, registry=registry, **changes)


def test_versions_from_the_command_line(capsys, real, tmp_path, monkeypatch):
    registry, card = real
    code, out, _ = run(capsys, "models", "list")
    rows = [line for line in out.splitlines() if "tiny@1.0.0" in line or "my-liver" in line]
    assert code == 0 and len(rows) == 2 and "adapted from tiny@1.0.0 on 2026-09-01" in rows[1]
    code, out, _ = run(capsys, "models", "show", "my-liver")
    assert code == 0 and "tiny@1.0.0 (Tiny test model) on 2026-09-01" in out and "Liver: 0.50 -> 0.75" in out
    code, _, err = run(capsys, "models", "remove", "tiny")
    assert code == 2 and "needed by My liver" in err
    assert run(capsys, "models", "verify", "my-liver")[0] == 0
    code, out, _ = run(capsys, "models", "export", "my-liver", tmp_path / "liver.zip")
    assert code == 0 and "needs the model tiny@1.0.0" in out
    code, _, err = run(capsys, "models", "export", "my-liver", tmp_path / "liver.zip")
    assert code == 2 and "not overwritten" in err
    code, out, _ = run(capsys, "models", "export", "my-liver", tmp_path / "whole.zip", "--whole")
    assert code == 0 and "by itself" in out
    run(capsys, "models", "remove", "my-liver")
    code, out, _ = run(capsys, "models", "add", tmp_path / "liver.zip")
    assert code == 0 and "Added my-liver@1.0.0" in out
    monkeypatch.setenv("HIENDSEG_MODELS", str(tmp_path / "elsewhere"))
    code, _, err = run(capsys, "models", "add", tmp_path / "liver.zip")
    assert code == 2 and "tiny@1.0.0, which is not installed" in err and files_in(tmp_path / "elsewhere") == []
    code, out, _ = run(capsys, "models", "add", tmp_path / "whole.zip")
    assert code == 0 and "adapted from" not in run(capsys, "models", "list")[1]


def test_listing_versions_and_their_export_need_no_torch(real, tmp_path):
    code = ("import sys\nfor name in ('torch', 'SimpleITK', 'nibabel', 'scipy', 'vtk'): sys.modules[name] = None\n"
            "from HiEndSegLib.cli import main\n"
            "sys.exit(main(['models', 'list']) or main(['models', 'export', 'my-liver', sys.argv[1]]))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.zip")], capture_output=True, text=True,
                          env={**os.environ})
    assert done.returncode == 0 and "adapted from tiny@1.0.0" in done.stdout, done.stderr
    assert zipfile.is_zipfile(tmp_path / "a.zip")


def test_whole_models_are_exported_too_and_unknown_ones_are_said(capsys, real, tmp_path):
    code, _, err = run(capsys, "models", "export", "nothing", tmp_path / "a.zip")
    assert code == 2 and "no model 'nothing'" in err
    assert run(capsys, "models", "export", "tiny", tmp_path / "tiny.zip")[0] == 0
    added = Registry(tmp_path / "none", tmp_path / "other").add(tmp_path / "tiny.zip")
    assert card_from_dict(card_to_dict(added)).key == "tiny@1.0.0"
    with pytest.raises(OptionError):
        Registry(tmp_path / "none", tmp_path / "other").remove("nothing")
