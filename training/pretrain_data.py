"""Volumes for pre-training: any folder of NIfTI, NRRD or DICOM -> a cache of scaled volumes that open in no time.

What is decoded, turned to RAS+ axes, resampled, clipped and scaled once is kept on disk as one `.npy` per volume, under
a name made of the source's path, size and time and of the recipe; so another recipe, or a changed file, gets entries of
its own. Beside it lies what the voxels look like (modality, label map), so that what is left out is decoded once, too;
only files that cannot be read are tried again each time, because the reason may be this machine's. Entries are memory-mapped: what fits stays in the system's file cache, shared by all processes, and of what
does not only the pages a crop touches are read. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from HiEndSegLib.errors import EngineError, HiEndSegError, InputError, OptionError, OutputError
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.geometry.modality import ModalityGuess, guess_modality
from HiEndSegLib.geometry.reading import Case, find_cases, list_series, read_volume, stem
from HiEndSegLib.geometry.resample import resample_to_spacing

from .in_words import make_folder

#: Largest stored value; a stored v is the scaled intensity v / LEVELS in [0, 1].
LEVELS = 65535
#: Thinner volumes hold less than a patch across and are left out (voxels at the recipe's spacing).
MIN_VOXELS = 12
_ENTRY_VERSION = 2


@dataclass(frozen=True)
class Preparation:
    """How a volume becomes a cache entry. spacing: mm, isotropic. window: HU that become 0 and 1, for CT; MR is scaled
    between its 0.5th and 99.5th percentile. modality: "CT", "MR" or None (whatever the data are, if all are the same)."""

    spacing: float = 1.5
    window: tuple[float, float] = (-175.0, 250.0)
    modality: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A cached volume. array: its file, uint16 (I, J, K) in RAS+ axes. foreground: fraction of voxels above
    `threshold` (stored units; 0 for CT: whatever lies above the window's lower end). digest: of the stored voxels."""

    name: str
    source: str
    kind: str
    array: str
    shape: tuple[int, int, int]
    threshold: int
    foreground: float
    digest: str

    def open(self) -> np.ndarray:
        """The voxels, memory-mapped. Raises InputError if the entry was damaged since it was written."""
        try:
            array = np.load(self.array, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"The cache file {self.array} is missing or damaged; start the command again to make "
                             "it anew.") from error
        if array.shape != tuple(self.shape) or array.dtype != np.uint16:
            raise InputError(f"The cache file {self.array} is not the one that was written; remove it and start "
                             "again.")
        return array


@dataclass(frozen=True)
class LeftOut:
    """A case that is not trained on, and why."""

    name: str
    sentence: str
    modality: str = ""                                    # set where only the modality speaks against it


# ------------------------------------------------------------------------------------------------ finding and naming


def find_named(roots: Sequence[str | Path]) -> list[tuple[str, Case]]:
    """Every case below the roots with a name of its own, sorted by it: the path below its root without extension."""
    named = []
    for root in map(Path, roots):
        if not root.exists():
            raise InputError(f"There is no folder or file {root}; check the name.")
        for case in find_cases([root]):
            if case.kind == "nothing":
                if len(roots) > 1 or not root.is_dir():
                    raise InputError(f"{root} holds no image; give a folder of NIfTI, NRRD or DICOM files.")
                continue
            relative = case.path.relative_to(root) if root.is_dir() and case.path != root else Path(case.path.name)
            named.append((_readable((relative.parent / stem(case.path)).as_posix()), case))
    taken: dict[str, int] = {}
    unique = {}
    for name, case in sorted(named, key=lambda pair: (pair[0], str(pair[1].path))):
        path = case.path.resolve()
        if path not in unique:
            taken[name] = taken.get(name, 0) + 1
            unique[path] = (name if taken[name] == 1 else f"{name}~{taken[name]}", case)
    return list(unique.values())


def _readable(name: str) -> str:
    """A name that can be printed and stored: bytes of a file name that are no UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def split_held_out(volumes: Sequence[Prepared], patterns: Iterable[str]) -> tuple[list[Prepared], list[Prepared]]:
    """(to train on, held out). A pattern is a volume's name, a part of its path, or either with * in it.

    Raises OptionError for a pattern that fits nothing, or where nothing is left to train on.
    """
    held = set()
    for pattern in patterns:
        fits = {v.name for v in volumes if any(fnmatch(part, pattern) for part in (v.name, *v.name.split("/")))}
        if not fits:
            names = ", ".join(v.name for v in volumes[:8]) + (", …" if len(volumes) > 8 else "")
            raise OptionError(f"--hold-out {pattern} fits no readable volume; there are {names}.")
        held |= fits
    kept = [v for v in volumes if v.name not in held]
    if not kept:
        raise OptionError("--hold-out leaves no volume to train on; hold out fewer.")
    return kept, [v for v in volumes if v.name in held]


# -------------------------------------------------------------------------------------------------------- preparing


def prepare_all(cases: Sequence[tuple[str, Case]], how: Preparation, cache: Path, *, workers: int = 0,
                tell: Callable[[str], None] = lambda sentence: None) -> list[Prepared | LeftOut]:
    """Prepare every case (or find it in the cache); results in the cases' order. A case that cannot be used becomes
    `LeftOut`. workers: processes beside this one; 0 works here. Raises OutputError (cache not writable, disk full)
    and EngineError (a worker was killed)."""
    make_folder(cache)
    results: dict[int, list[Prepared | LeftOut]] = {}
    started = told = time.monotonic()

    def note(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > 10:
            told = now
            tell(f"prepared {done} of {len(cases)} volumes, about "
                 f"{duration((now - started) / done * (len(cases) - done))} left")

    if workers > 0 and len(cases) > 1:
        # Not forked: this process may hold a GPU or open connections to other ranks.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            try:
                futures = {pool.submit(prepare, name, case, how, cache): i for i, (name, case) in enumerate(cases)}
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    note(len(results))
            except BrokenProcessPool:
                raise EngineError("A process that prepares volumes was ended from outside, most often because memory "
                                  "ran out; give fewer --workers (what is prepared is kept).") from None
    else:
        for i, (name, case) in enumerate(cases):
            results[i] = prepare(name, case, how, cache)
            note(len(results))
    return [result for i in range(len(cases)) for result in results[i]]


def prepare(name: str, case: Case, how: Preparation, cache: Path) -> list[Prepared | LeftOut]:
    """One case; a DICOM folder with several image series gives one result for each."""
    try:
        # A slice seen from the side is a series too; what has no depth is left out below with its reason.
        numbers = [s.number for s in list_series(case.path)] if case.kind == "dicom" else []
    except (HiEndSegError, OSError):
        numbers = []
    if len(numbers) > 1:
        return [_prepare_one(f"{name}#{number}", case.path, number, how, cache) for number in numbers]
    return [_prepare_one(name, case.path, None, how, cache)]


def _prepare_one(name: str, path: Path, series: int | None, how: Preparation, cache: Path) -> Prepared | LeftOut:
    try:
        source = _source(path, series)
        volume, (guess, labels) = None, _seen(cache, source) or (None, False)
        if guess is None:
            volume = read_volume(path, series=series)
            guess, labels = guess_modality(volume), looks_like_labels(volume.array)
            _write_entry(_entry(cache, source), {"guess": asdict(guess), "labels": labels})
        if labels:
            return LeftOut(name, "It looks like a label map (few whole numbers in even areas), not like an image.")
        refusal = _refuse(guess, how.modality)
        if refusal:
            return LeftOut(name, refusal, guess.kind)
        kind = how.modality or guess.kind
        entry = _entry(cache, [*source, kind, how.spacing, how.window if kind == "CT" else None])
        known = _known(entry)
        if isinstance(known, Prepared):
            return replace(known, name=name, source=str(path))
        if known is not None:
            return LeftOut(name, known)
        array = resample_to_spacing(volume or read_volume(path, series=series), how.spacing).array
        del volume
        reason = ""
        if min(array.shape) < MIN_VOXELS:
            reason = (f"It has {' x '.join(map(str, array.shape))} voxels at {how.spacing:g} mm, and {MIN_VOXELS} are "
                      "needed along every axis.")
        else:
            scaled, threshold = scale(array, kind, how.window)
            foreground = float(np.count_nonzero(scaled > threshold)) / scaled.size
            if foreground == 0.0:
                reason = "No voxel lies above the intensity window's lower end, so there is nothing to see."
        if reason:
            _write_entry(entry, {"left_out": reason})
            return LeftOut(name, reason)
        prepared = Prepared(name, str(path), kind, str(entry.with_suffix(".npy")), scaled.shape, threshold, foreground,
                            hashlib.sha256(scaled).hexdigest()[:16])
    except OutputError:
        raise
    except HiEndSegError as error:
        return LeftOut(name, error.sentence)
    except OSError as error:
        return LeftOut(name, f"It cannot be read ({error.strerror or error}).")
    with atomic_target(prepared.array) as temporary:
        np.save(temporary, scaled, allow_pickle=False)
    _write_entry(entry, asdict(prepared))                       # last: an entry with its description is whole
    return prepared


def scale(array: np.ndarray, kind: str, window: tuple[float, float]) -> tuple[np.ndarray, int]:
    """Intensities as uint16 of 0…1, and the stored value above which a voxel counts as foreground.

    For CT that is the window's lower end, as in the paper; for MR, where air is not zero, the mean intensity."""
    low, high = window if kind == "CT" else (float(v) for v in np.percentile(array, (0.5, 99.5)))
    scaled = (array - np.float32(low)) * np.float32(1.0 / max(high - low, 1e-6))
    stored = np.rint(np.clip(scaled, 0.0, 1.0, out=scaled) * LEVELS).astype(np.uint16)
    return stored, 0 if kind == "CT" else int(stored.mean())


def looks_like_labels(array: np.ndarray) -> bool:
    """Whether voxels are few whole numbers from 0 up that hardly ever change from one voxel to the next, where there is
    anything at all. In an image noise changes them nearly everywhere."""
    step = max(1, int(round((array.size / 4e6) ** (1 / 3))))    # planes apart, lines whole: neighbours stay neighbours
    part = array[:, ::step, ::step]
    if part.shape[0] < 2 or part.dtype.kind not in "biuf" or not float(part.min()) >= 0 or not float(part.max()) < 4096:
        return False
    if part.dtype.kind == "f" and (part % 1).any():
        return False
    one, next_one = part[:-1], part[1:]
    some = (one > 0) | (next_one > 0)
    return bool(some.any()) and len(np.unique(part)) <= 256 and float((one == next_one)[some].mean()) > 0.7


def agree_on_modality(results: Sequence[Prepared | LeftOut]) -> str:
    """The modality of all usable volumes; InputError if there are none or they differ."""
    usable = [r for r in results if isinstance(r, Prepared)]
    found = {kind: [r.name for r in usable if r.kind == kind] for kind in ("CT", "MR")}
    if found["CT"] and found["MR"]:
        raise InputError(f"The data hold {len(found['CT'])} CT ({found['CT'][0]}, …) and {len(found['MR'])} MR "
                         f"({found['MR'][0]}, …), and one encoder learns one of them; choose with --modality CT or "
                         "--modality MR.")
    if not usable:
        first = f" (the first of {len(results)}: {results[0].name}: {results[0].sentence})" if results else ""
        raise InputError(f"There is no volume to train on{first}; give a folder with CT or MR volumes as NIfTI, NRRD "
                         "or DICOM.")
    return usable[0].kind


def _refuse(guess, wanted: str | None) -> str | None:
    """Why a volume of this modality is not used, or None."""
    if wanted == "MR":
        return f"{guess.sentence} Only MR was asked for." if guess.kind == "CT" else None
    if guess.kind == "CT" and guess.is_hu:
        return None
    if guess.kind == "MR" and wanted is None:
        return None
    return guess.sentence


# ------------------------------------------------------------------------------------------------------- the cache


def _source(path: Path, series: int | None) -> list:
    """What tells a source from another one, and from itself after a change."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stamps = []
    for file in files:
        status = file.stat()
        stamps.append([os.path.realpath(file), status.st_size, status.st_mtime_ns])
    if path.suffix.lower() in (".nhdr", ".mhd"):        # the voxels lie in files beside it
        stamps += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(path.parent.glob(f"{path.stem}.*"))]
    return [stamps, series]


def _entry(cache: Path, key: list) -> Path:
    """The file that describes an entry; voxels lie beside it."""
    text = json.dumps([_ENTRY_VERSION, *key])
    return cache / f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}.json"


def _write_entry(path: Path, content: dict) -> None:
    with atomic_target(path) as temporary:
        temporary.write_text(json.dumps({**content, "version": _ENTRY_VERSION}), encoding="utf-8")


def _read_entry(path: Path) -> dict:
    """An entry's description; raises what `_ABSENT` lists."""
    entry = json.loads(path.read_text(encoding="utf-8"))
    if entry.pop("version") != _ENTRY_VERSION:
        raise KeyError("version")
    return entry


#: An entry that is absent, of another version or damaged; it is made anew.
_ABSENT = (OSError, ValueError, KeyError, TypeError, AttributeError, InputError)


def _seen(cache: Path, source: list) -> tuple[ModalityGuess, bool] | None:
    """What the voxels of a source look like: its modality, and whether it is a label map."""
    try:
        entry = _read_entry(_entry(cache, source))
        return ModalityGuess(**entry["guess"]), bool(entry["labels"])
    except _ABSENT:
        return None


def _known(path: Path) -> Prepared | str | None:
    """A prepared volume, or why there is none."""
    try:
        entry = _read_entry(path)
        if "left_out" in entry:
            return str(entry["left_out"])
        prepared = replace(Prepared(**entry), array=str(path.with_suffix(".npy")), shape=tuple(entry["shape"]))
        prepared.open()
        return prepared
    except _ABSENT:
        return None


def duration(seconds: float) -> str:
    """"40 s", "12 min" or "3.5 h", for a person who waits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
