"""The registry: what is found, what is passed over and why, adding and removing without harm."""

from __future__ import annotations

import json
import os
import zipfile

import pytest

from HiEndSegLib.errors import Cancelled, ModelError, OptionError, OutputError
from HiEndSegLib.models import intake
from HiEndSegLib.models.registry import Registry, user_folder, version_key
from HiEndSegLib.tasks import CancelToken
from tiny_models import card_dict, write_bytes_model


@pytest.fixture
def registry(tmp_path):
    write_bytes_model(tmp_path / "shipped" / "alpha", id="alpha")
    write_bytes_model(tmp_path / "shipped" / "beta", id="beta", default=True)
    return Registry(shipped=tmp_path / "shipped", user=tmp_path / "user")


def test_the_default_comes_first_and_is_what_none_means(registry):
    assert [card.id for card in registry.list()] == ["beta", "alpha"]
    assert registry.get().id == "beta" and registry.get(None).default
    assert registry.is_shipped(registry.get("alpha"))


def test_without_a_default_the_first_shipped_one_is_it(tmp_path):
    write_bytes_model(tmp_path / "shipped" / "b", id="b")
    write_bytes_model(tmp_path / "shipped" / "a", id="a")
    write_bytes_model(tmp_path / "user" / "c", id="c", default=True)
    assert Registry(shipped=tmp_path / "shipped", user=tmp_path / "user").get().id == "a"


def test_no_model_at_all_says_where_it_looked(tmp_path):
    with pytest.raises(ModelError, match="hiendseg models add"):
        Registry(shipped=tmp_path / "none", user=tmp_path / "nothing").get()


def test_the_newest_version_of_an_id_is_taken_and_any_can_be_named(registry):
    for version in ("1.2.0", "1.10.0", "1.10.0-draft"):
        write_bytes_model(registry.user / f"x{version}", id="x", version=version)
    assert registry.get("x").version == "1.10.0"
    assert registry.get("x@1.2.0").version == "1.2.0"
    assert [c.version for c in registry.list() if c.id == "x"] == ["1.10.0", "1.10.0-draft", "1.2.0"]


def test_versions_sort_as_people_read_them():
    ordered = ["0.9", "1-a", "1.0.0", "1+anna.2", "1+anna.10", "1.0.1", "1.2", "1.10", "2"]
    assert sorted(reversed(ordered), key=version_key) == ordered


def test_a_folder_path_names_a_model_that_is_not_installed(registry, tmp_path):
    folder = write_bytes_model(tmp_path / "somewhere else" / "mine", id="mine")
    assert registry.get(str(folder)).id == "mine" and registry.get(folder).folder == folder
    assert not registry.is_shipped(registry.get(folder))


def test_an_unknown_model_names_the_known_ones(registry):
    with pytest.raises(OptionError, match="installed are: beta, alpha"):
        registry.get("gamma")


def test_bad_folders_are_listed_with_their_sentence_and_the_rest_works(registry):
    write_bytes_model(registry.user / "cut", b"0123456789", id="cut")
    (registry.user / "cut" / "weights.safetensors").write_bytes(b"01")
    (registry.user / "empty@1").mkdir()
    (registry.user / "twin").mkdir()
    write_bytes_model(registry.user / "twin", id="alpha")
    assert [card.id for card in registry.list()] == ["beta", "alpha"]
    said = {problem.folder.name: str(problem) for problem in registry.problems}
    assert set(said) == {"cut", "empty@1", "twin"}
    assert "2 bytes instead of 10" in said["cut"]
    assert "has no file card.json" in said["empty@1"]
    assert "exists already" in said["twin"]
    with pytest.raises(ModelError, match="has no file card.json"):
        registry.get("empty")


def test_the_environment_names_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HIENDSEG_MODELS", str(tmp_path / "mine"))
    assert user_folder() == tmp_path / "mine" == Registry().user
    monkeypatch.delenv("HIENDSEG_MODELS")
    assert "HiEndSeg" in str(user_folder())


def test_verify_reads_every_byte(registry):
    assert registry.verify("alpha").id == "alpha"
    (registry.shipped / "alpha" / "weights.safetensors").write_bytes(b"not really wrights")
    assert "alpha" in [card.id for card in registry.list()]
    with pytest.raises(ModelError, match="checksum"):
        registry.verify("alpha")


# ------------------------------------------------------------------------------------------------ adding


def _names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_add_copies_what_a_model_needs_and_nothing_else(registry, tmp_path):
    source = write_bytes_model(tmp_path / "from" / "any name", id="new")
    (source / "LICENSE").write_text("free")
    (source / "run_me.py").write_text("print()")
    card = registry.add(source)
    assert card.folder == registry.user / "new@1.0.0"
    assert _names(card.folder) == ["LICENSE", "card.json", "weights.safetensors"]
    assert registry.verify("new").folder == card.folder
    assert _names(registry.user) == ["new@1.0.0"]


def test_add_never_overwrites(registry, tmp_path):
    source = write_bytes_model(tmp_path / "new", id="new")
    registry.add(source)
    with pytest.raises(ModelError, match="installed already"):
        registry.add(source)
    with pytest.raises(ModelError, match="installed already"):
        registry.add(registry.shipped / "alpha")
    registry.add(write_bytes_model(tmp_path / "newer", id="new", version="1.1.0"))
    assert _names(registry.user) == ["new@1.0.0", "new@1.1.0"]


def test_an_altered_model_is_not_taken_and_leaves_nothing(registry, tmp_path):
    source = write_bytes_model(tmp_path / "new", b"0123456789", id="new")
    (source / "weights.safetensors").write_bytes(b"0123456780")
    with pytest.raises(ModelError, match="checksum"):
        registry.add(source)
    (source / "weights.safetensors").write_bytes(b"0123456789 and more")
    with pytest.raises(ModelError, match="larger than"):
        registry.add(source)
    (source / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="no file weights.safetensors"):
        registry.add(source)
    assert _names(registry.user) == []


def test_a_full_disk_is_said_before_anything_is_written(registry, tmp_path, monkeypatch):
    source = write_bytes_model(tmp_path / "new", id="new")
    monkeypatch.setattr(intake.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutputError, match="free some space"):
        registry.add(source)
    assert _names(registry.user) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(registry, tmp_path, monkeypatch):
    source = write_bytes_model(tmp_path / "new", id="new")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(intake.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        registry.add(source)
    assert _names(registry.user) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a place that not even root can write to")
def test_a_folder_that_cannot_be_written(tmp_path):
    source = write_bytes_model(tmp_path / "new", id="new")
    registry = Registry(shipped=tmp_path / "none", user="/proc/hiendseg-models")  # not writable even for root
    with pytest.raises(OutputError, match="could not be copied"):
        registry.add(source)


def test_cancelling_an_addition_leaves_nothing(registry, tmp_path):
    source = write_bytes_model(tmp_path / "new", id="new")
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        registry.add(source, cancel)
    assert _names(registry.user) == []


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_model_made_of_links_is_refused(registry, tmp_path):
    source = write_bytes_model(tmp_path / "new", id="new")
    (source / "weights.safetensors").rename(tmp_path / "w")
    (source / "weights.safetensors").symlink_to(tmp_path / "w")
    with pytest.raises(ModelError, match="link that leads out"):
        registry.add(source)


# ------------------------------------------------------------------------------------------------ zip


def _zip(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def _entries(tmp_path, prefix="", **changes):
    source = write_bytes_model(tmp_path / "packed", **changes)
    return [(prefix + path.name, path.read_bytes()) for path in sorted(source.iterdir())]


@pytest.mark.parametrize("prefix", ["", "new model/"])
def test_a_zip_is_added_like_a_folder(registry, tmp_path, prefix):
    archive = _zip(tmp_path / "new.zip", _entries(tmp_path, prefix, id="new"))
    assert registry.verify(registry.add(archive).key).id == "new"


@pytest.mark.parametrize("extra, words", [
    ("../evil.txt", "written outside"),
    ("a/../../evil.txt", "written outside"),
    ("/etc/evil", "written outside"),
    ("a\\evil.txt", "written outside"),
    ("C:evil.txt", "written outside"),
])
def test_zip_paths_that_lead_out_are_refused(registry, tmp_path, extra, words):
    archive = tmp_path / "new.zip"
    entries = _entries(tmp_path, id="new")
    with zipfile.ZipFile(archive, "w") as stream:
        for name, content in entries:
            stream.writestr(name, content)
        info = zipfile.ZipInfo("x")
        info.filename = extra  # the constructor would turn a backslash into a slash on some systems
        stream.writestr(info, b"evil")
    with pytest.raises(ModelError, match=words):
        registry.add(archive)
    assert _names(registry.user) == []


def test_zip_links_bombs_and_crowds_are_refused(registry, tmp_path):
    entries = _entries(tmp_path, id="new")
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as stream:
        for name, content in entries:
            stream.writestr(name, content)
        stream.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match="a link"):
        registry.add(tmp_path / "link.zip")
    with pytest.raises(ModelError, match="as no model does"):
        registry.add(_zip(tmp_path / "bomb.zip", entries + [("zeros", bytes(50_000_000))]))
    with pytest.raises(ModelError, match="1203 entries"):
        registry.add(_zip(tmp_path / "crowd.zip", entries + [(f"f{n}", b"") for n in range(1201)]))
    assert _names(registry.user) == []


def test_a_weight_entry_larger_than_the_card_says_stops_early(registry, tmp_path):
    entries = dict(_entries(tmp_path, id="new"))
    entries["weights.safetensors"] = os.urandom(3_000_000)
    with pytest.raises(ModelError, match="larger than"):
        registry.add(_zip(tmp_path / "new.zip", entries.items()))
    assert _names(registry.user) == []


def test_zips_that_are_none(registry, tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(ModelError, match="not a readable zip"):
        registry.add(tmp_path / "text.zip")
    archive = _zip(tmp_path / "cut.zip", _entries(tmp_path, id="new"))
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ModelError, match="not a readable zip"):
        registry.add(archive)
    with pytest.raises(ModelError, match="holds no model cards"):
        registry.add(_zip(tmp_path / "other.zip", [("readme.txt", b"")]))
    with pytest.raises(ModelError, match="card.json in bad.zip: field id is missing"):
        registry.add(_zip(tmp_path / "bad.zip", [("card.json", json.dumps({k: v for k, v in card_dict().items()
                                                                            if k != "id"}))]))
    with pytest.raises(ModelError, match="There is no file or folder"):
        registry.add(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ removing


def test_only_the_users_models_can_be_removed(registry, tmp_path):
    card = registry.add(write_bytes_model(tmp_path / "new", id="new"))
    assert registry.remove("new") == card.folder
    assert _names(registry.user) == []
    with pytest.raises(ModelError, match="came with HiEndSeg"):
        registry.remove("alpha")
    assert registry.get("alpha")
    with pytest.raises(OptionError, match="no model 'new'"):
        registry.remove("new")
    with pytest.raises(OptionError):
        registry.remove("../shipped/alpha")
    assert _names(registry.shipped) == ["alpha", "beta"]


def test_of_several_versions_one_must_be_named(registry, tmp_path):
    for version in ("1", "2"):
        registry.add(write_bytes_model(tmp_path / version, id="new", version=version))
    with pytest.raises(OptionError, match="several versions of new: new@2, new@1"):
        registry.remove("new")
    registry.remove("new@1")
    assert _names(registry.user) == ["new@2"]


def test_a_broken_model_can_be_removed_and_a_link_is_only_unlinked(registry, tmp_path):
    card = registry.add(write_bytes_model(tmp_path / "new", id="new"))
    (card.folder / "card.json").write_text("{")
    registry.remove("new")
    assert _names(registry.user) == []
    outside = write_bytes_model(tmp_path / "outside", id="linked")
    if os.name != "nt":
        (registry.user / "linked").symlink_to(outside)
        registry.remove("linked")
        assert _names(registry.user) == [] and _names(outside) == ["card.json", "weights.safetensors"]


# ------------------------------------------------------------------------------------------------ where models ship


@pytest.mark.parametrize("layout", ["Resources", "HiEndSegLib/_resources"])
def test_shipped_models_are_found_beside_the_package_and_inside_a_wheel(tmp_path, monkeypatch, layout):
    from HiEndSegLib import resources

    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "HiEndSegLib")
    folder = write_bytes_model(tmp_path / layout / "Models" / "tiny")
    assert Registry(user=tmp_path / "none").get().folder == folder
