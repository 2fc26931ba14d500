"""Names, disks and kills: a version has a folder of its own, whole, or there is none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from version_models import adaptation, build_small, shelf

from HiEndSegLib.errors import ModelError, OutputError
from HiEndSegLib.geometry import files
from HiEndSegLib.models import loading
from HiEndSegLib.models.loading import load_model
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.models.versions import check_before, write_version


@pytest.fixture
def registry(tmp_path):
    return shelf(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name, key", [
    ("../../etc/passwd", "etc-passwd@1.0.0"), ("a/b\\c:d", "a-b-c-d@1.0.0"), ("Läber (Süd) №1", "laber-sud-no1@1.0.0"),
    ("肝臓", "version@1.0.0"), ("…", "version@1.0.0"), ("CON", "con@1.0.0"), ("x" * 100, "x" * 48 + "@1.0.0"),
    ("  Liver  ", "liver@1.0.0")])
def test_any_name_a_person_gives_makes_a_folder_of_plain_letters(registry, name, key):
    card = write_version(registry.get(), registry=registry, **adaptation(name))
    assert card.key == key and card.title == name.strip() == card.adaptation["name"] and names(registry.user) == [key]


@pytest.mark.parametrize("name, words", [("", "needs a name"), ("   ", "needs a name"), ("x" * 101, "101 characters"),
                                         ("a\nb", "control characters"), ("\ud800", "control characters")])
def test_names_that_are_none(registry, name, words):
    for attempt in (lambda: check_before(registry.get(), name=name, registry=registry),
                    lambda: write_version(registry.get(), registry=registry, **adaptation(name))):
        with pytest.raises(ModelError, match=words):
            attempt()
    assert names(registry.user) == []


def test_a_name_in_use_is_refused_with_the_next_free_one(registry):
    for name in ("Liver", "Liver 2"):
        write_version(registry.get(), registry=registry, **adaptation(name))
    with pytest.raises(ModelError, match="a model named 'liver' already.*'liver 3' is free"):
        write_version(registry.get(), registry=registry, **adaptation("liver"))
    with pytest.raises(ModelError, match="'Liver 3' is free"):
        check_before(registry.get(), name="Liver 2", registry=registry)
    with pytest.raises(ModelError, match="'Base 2' is free"):
        check_before(None, name="Base", registry=registry)
    other = write_version(registry.get(), registry=registry, **adaptation("Liver!"))
    assert other.id == "liver-3", "two names that are written alike have ids of their own"
    (registry.user / "broken@1.0.0").mkdir()
    assert write_version(registry.get(), registry=registry, **adaptation("Broken")).id == "broken-2"


# ------------------------------------------------------------------------------------------------ disks


@pytest.mark.parametrize("where", ["save_file", "fsync", "rename", "replace", "mkdtemp"])
def test_a_full_disk_leaves_nothing(registry, monkeypatch, where):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = {"save_file": loading, "mkdtemp": files.tempfile}.get(where, os)
    monkeypatch.setattr(owner, where, full)
    with pytest.raises(OutputError, match="No space left|disk is full") as caught:
        write_version(registry.get(), registry=registry, **adaptation("A"))
    assert ".writing-" not in str(caught.value)
    monkeypatch.undo()
    assert names(registry.user) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a place that not even root can write to")
def test_a_folder_that_may_not_be_written_to(registry):
    locked = Registry(registry.shipped, "/proc/hiendseg-models")
    with pytest.raises(OutputError, match="make the folder writable. Nothing was changed"):
        write_version(registry.get(), registry=locked, **adaptation("A"))


def test_somebody_faster_is_not_overwritten(registry, monkeypatch):
    parent = registry.get()

    def slow(card, *args, **options):
        (registry.user / "a@1.0.0").mkdir()
        return load_model(card, *args, **options)

    monkeypatch.setattr(loading, "load_model", slow)
    with pytest.raises(ModelError, match="choose another name"):
        write_version(parent, registry=registry, **adaptation("A"))
    assert names(registry.user) == ["a@1.0.0"] and names(registry.user / "a@1.0.0") == []


def test_what_a_killed_program_left_long_ago_is_cleared_away(registry):
    for name, age in ((".writing-old", 2 * 86400), (".writing-new", 60)):
        (registry.user / name).mkdir(parents=True)
        stamp = (registry.user / name).stat().st_mtime - age
        os.utime(registry.user / name, (stamp, stamp))
    write_version(registry.get(), registry=registry, **adaptation("A"))
    assert names(registry.user) == [".writing-new", "a@1.0.0"]
    assert [card.id for card in registry.list()] == ["base", "a"]


# ------------------------------------------------------------------------------------------------ kills

_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from HiEndSegLib.geometry import files
from HiEndSegLib.models import loading, versions
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.models.teaching import TeachingCase
from version_models import adaptation

registry = Registry(sys.argv[1], sys.argv[2])
voxels = np.zeros((4, 4, 4))
case = TeachingCase("ab" * 8, voxels.astype(np.int16), voxels.astype(np.uint8), {1: "liver"}, (3, 3, 3))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name):
    setattr(owner, name, lambda *args, **options: die())


def after(owner, name):
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: (real(*args, **options), die()))


def half_written(tensors, path):
    Path(path).write_bytes(b"half of it")
    die()


POINTS = [lambda: before(np, "savez_compressed"), lambda: after(versions, "write_teaching"),
          lambda: before(loading, "save_file"), lambda: setattr(loading, "save_file", half_written),
          lambda: after(loading, "save_file"), lambda: before(loading, "write_card"),
          lambda: after(loading, "write_card"), lambda: before(loading, "load_model"),
          lambda: before(files.os, "rename"), lambda: after(files.os, "rename")]
for number, prepare in enumerate(POINTS):       # a child for each point: torch is imported once
    child = os.fork()
    if child == 0:
        prepare()
        versions.write_version(registry.get("base"), registry=registry, teaching=[case],
                               **adaptation(f"Number {number}"))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    there = [entry.name for entry in registry.user.iterdir() if not entry.name.startswith(".")]
    print(number, os.WIFSIGNALED(status) and os.WTERMSIG(status), ",".join(there) or "-")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked and killed")
def test_a_kill_at_any_moment_leaves_the_whole_version_or_none(registry):
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", _KILLED, str(registry.shipped), str(registry.user)], text=True,
                          capture_output=True, timeout=300, env={
                              **os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
                              "OMP_NUM_THREADS": "1"})
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == ["9"] * 10, done.stdout + done.stderr
    assert [line[2] for line in lines] == ["-"] * 9 + ["number-9@1.0.0"], done.stdout
    assert [card.key for card in registry.list()] == ["base@1.0.0", "number-9@1.0.0"] and registry.problems == []
    assert load_model(registry.verify("number-9"), build=build_small, registry=registry)
    write_version(registry.get("base"), registry=registry, **adaptation("Number 0"))     # nothing is in the way
    assert len(registry.list()) == 3
