"""Versions: what one adaptation made, kept as small changes beside the model it came from, which is never touched.

A version is a model folder like any other: card, weights, and perhaps a teaching set. Its card's "adaptation" says
where it comes from, its weights are a `Delta` over the *base*. Adapting a version again gives changes to the same base,
so a version never needs its parent. A folder is there whole or not at all, whenever the program is killed.

torch is imported by the functions that need it: faces use the rest.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, OutputError
from ..geometry.files import atomic_target, staged_folder
from ..geometry.labels import Label
from ..tasks import CancelToken
from .card import CARD_NAME, ModelCard, card_from_dict, card_to_dict, read_card, verify_weights
from .family import adapted_on, check_name, free_id, now, reference
from .intake import TEXT_NAMES
from .registry import Registry
from .teaching import TeachingCase, with_case, write_teaching

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = "1.0.0"
#: Bytes of a version besides its weights.
LEAST_ROOM = 1_000_000


def check_before(parent: ModelCard | None, *, name: str, labels: Iterable[Label] = (),
                 registry: Registry | None = None) -> str:
    """Everything that can be refused before minutes are spent on training; returns the name as it will be stored.

    parent: None where a model is made from an encoder. labels: of the structures the new version would name.
    Raises ModelError: the name is used or none, the parent is not installed, was deleted or changed since, a label
    cannot be written to a card.
    """
    registry = registry or Registry()
    cards = registry.list()
    name = check_name(name, cards)
    if parent is not None:
        _base_for(parent, registry, cards)
        labels = [label for label in labels if label.id not in {known.id for known in parent.labels}]
    for label in labels:
        _check_label(label)
    return name


def check_room(parent: ModelCard | None, voxels: int = 0, *, everything: bool = False,
               registry: Registry | None = None) -> None:
    """Whether a version would fit onto the disk; OutputError before minutes are spent. voxels: of a case that is to be
    remembered with it, 3 bytes each before packing. everything: all weights may change; else a quarter is much."""
    registry = registry or Registry()
    need = LEAST_ROOM + 3 * voxels
    if parent is not None:
        weights = (registry.base_of(parent) if parent.is_version else parent).weights["bytes"]
        need += weights if everything else weights // 4
    folder = Path(registry.user)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < need:
            raise OutputError(f"The new version may need {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free where "
                              f"models are kept ({registry.user}); free some space first.")


def write_version(parent: ModelCard, *, name: str, network: Mapping[str, Any], labels: Sequence[Label],
                  replaced: Mapping[str, Tensor], low_rank: Mapping[str, tuple[Tensor, Tensor]],
                  report: Mapping[str, Any], case: Mapping[str, Any], parameters: Mapping[str, Any],
                  user_folder: str | os.PathLike | None = None, teaching: Sequence[TeachingCase] = (),
                  curve: Sequence[Sequence[float]] | None = None, date: str | None = None,
                  registry: Registry | None = None, build: Callable | None = None) -> ModelCard:
    """Keep what an adaptation of `parent` changed as a new version in the user's model folder; returns its card.

    network, labels: of the new card. replaced, low_rank: relative to the parent's (merged) weights, see `Delta`.
    case: {"fingerprint", "shape", "spacing"}. teaching: all cases to keep beside it (patients' images: opt-in), oldest
    first; the oldest give way where a set cannot hold them all. curve: of grey values (None: the parent's).
    date: ISO 8601 (None: now). registry: instead of the usual folders and `user_folder`. build: as in `load_model`.

    The version is loaded once before it counts. Raises ModelError (name, parent or base gone or changed, changes that
    do not fit or are not finite) and OutputError (disk full, not writable); nothing is left then.
    """
    from .deltas import Delta, flatten, from_tensors, merged_shapes, to_tensors
    from .loading import read_state
    from .weights import read_safetensors

    registry = registry or Registry(user=user_folder)
    cards, teaching = registry.list(), with_case(teaching)
    name = check_name(name, cards)
    base = _base_for(parent, registry, cards)
    verify_weights(base)
    verify_weights(parent)
    base_state = read_state(base)
    shapes = {key: tuple(tensor.shape) for key, tensor in base_state.items()}
    earlier, parent_shapes = Delta(), shapes
    if parent.is_version:
        stored = read_safetensors(parent.weights_path, none=True)
        earlier = from_tensors(stored, shapes, f"The weights of version {parent.key}")
        parent_shapes = merged_shapes({key: tuple(tensor.shape) for key, tensor in stored.items()}, shapes, "")
    new = Delta({key: tensor.detach().cpu() for key, tensor in replaced.items()},
                {key: (a.detach().cpu(), b.detach().cpu()) for key, (a, b) in low_rank.items()})
    merged_shapes({key: tuple(tensor.shape) for key, tensor in to_tensors(new).items()}, parent_shapes, "The changes")
    tensors = to_tensors(flatten(earlier, new, base_state.__getitem__))
    del base_state
    adaptation = {"base": reference(base), "parent": reference(parent), "name": name, "date": date or now(),
                  "case": plain(case), "parameters": plain(parameters), "report": plain(report),
                  "teaching_cases": len(teaching)}
    card = _card(parent, name, network, labels, report, registry, adaptation=adaptation, training={})
    if curve is not None:
        card = replace(card, curve=plain(curve))
    return _write(replace(card, **_words(card, parent)), tensors, teaching, registry, build)


def write_whole(card: ModelCard, *, name: str, network: Mapping[str, Any], labels: Sequence[Label],
                state: nn.Module | Mapping[str, Tensor], report: Mapping[str, Any], case: Mapping[str, Any],
                parameters: Mapping[str, Any], user_folder: str | os.PathLike | None = None,
                teaching: Sequence[TeachingCase] = (), date: str | None = None, registry: Registry | None = None,
                build: Callable | None = None) -> ModelCard:
    """Keep a model made from an encoder: all of its weights, no base, so that it is a model like any other.

    card: in memory, with licence and provenance of the encoder; what one labeled case taught it goes into its
    "training". Everything else as in `write_version`.
    """
    registry = registry or Registry(user=user_folder)
    name = check_name(name, registry.list())
    training = {**card.training, "date": date or now(), "case": plain(case), "parameters": plain(parameters),
                "report": plain(report)}
    card = _card(card, name, network, labels, report, registry, adaptation=None, training=training)
    return _write(card, state, teaching, registry, build)


def export_version(card: ModelCard, path: str | os.PathLike, *, whole: bool = False, overwrite: bool = False,
                   registry: Registry | None = None, cancel: CancelToken | None = None) -> Path:
    """One .zip that `Registry.add` takes: card, weights and licence texts, never the teaching set. Returns its path
    (".zip" is added where it is missing).

    whole: with the base's weights merged in, for people who do not have the base (a version then becomes a model of
    its own). Raises ModelError (weights altered, base gone) and OutputError (disk, or a file is there already).
    """
    path = Path(path)
    if path.suffix.lower() != ".zip":
        path = path.with_name(path.name + ".zip")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already and is not overwritten; choose another name or delete it first.")
    verify_weights(card, cancel)
    with tempfile.TemporaryDirectory(prefix="hiendseg-export-") as merged:
        if whole and card.is_version:
            card = _merged(card, Path(merged), registry, cancel)
        files = [CARD_NAME, card.weights["file"], *(text for text in TEXT_NAMES if (card.folder / text).is_file())]
        with atomic_target(path) as temporary:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:    # weights hardly compress
                for file in files:
                    entry = zipfile.ZipInfo(f"{card.id}/{file}")                    # its date would tell nothing new
                    entry.external_attr = 0o644 << 16
                    with open(card.folder / file, "rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                        while chunk := source.read(1 << 20):
                            if cancel is not None:
                                cancel.check()
                            target.write(chunk)
    return path


# ------------------------------------------------------------------------------------------------------ inside


def plain(value: Any) -> Any:
    """A report as JSON takes it: numpy's numbers as Python's, tuples as lists, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _base_for(parent: ModelCard, registry: Registry, cards: list[ModelCard]) -> ModelCard:
    """The base that a version of this parent would have."""
    if parent.is_version:
        return registry.base_of(parent)
    if not any(card.key == parent.key and card.checksum == parent.checksum for card in cards):
        if any(card.key == parent.key for card in cards):
            raise ModelError(f"Model {parent.key} was changed on disk since it was opened; choose it again and adapt "
                             "what is there now.")
        for problem in registry.problems:
            if problem.key == parent.key:
                raise ModelError(problem.sentence)
        raise ModelError(f"Model {parent.key} is not among the installed models, where its versions would look for it; "
                         "add it first ('hiendseg models add'), and adapt it then.")
    return parent


def _check_label(label: Label) -> None:
    """As a card would: the sentence names the field."""
    import jsonschema

    from .card_schema import CARD_SCHEMA

    schema = {**CARD_SCHEMA["properties"]["labels"]["items"], "$defs": CARD_SCHEMA["$defs"]}
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(
        {**label.to_dict(), "value": 1}))
    if error is not None:
        where = ".".join(map(str, error.absolute_path)) or "the structure"
        raise ModelError(f"The structure '{label.name[:60]}' cannot be taught under this name (its {where} is not "
                         "acceptable); give it a name of 1 to 100 characters and an id of small letters, digits and "
                         "underscores.", code="bad-option")


def _card(parent: ModelCard, name: str, network: Mapping, labels: Sequence[Label], report: Mapping, registry: Registry,
          **changes: Any) -> ModelCard:
    return replace(parent, id=free_id(name, registry), version=VERSION, title=name, network=plain(network),
                   labels=sorted(labels, key=lambda label: label.value), scores=_scores(report), default=False,
                   folder=None, **changes)


def _words(card: ModelCard, parent: ModelCard) -> dict[str, str]:
    taught = [str(entry.get("name") or entry.get("id")) for entry in card.adaptation["report"].get("taught", [])]
    made = f"Adapted from {parent.title} ({parent.key}) on {adapted_on(card)} with one labeled case"
    provenance = f"{made}, on this person's own computer; the case is not part of it. {parent.provenance}"
    return {"description": f"{made}{'; taught: ' + ', '.join(taught) if taught else ''}. For research use; not a "
                           "medical device."[:20000],
            "provenance": provenance[:20000]}


def _scores(report: Mapping) -> list[dict]:
    """What was measured on the slices that were kept out of training; they are of the case it learned from."""
    scores = []
    for entry in report.get("taught", ()):
        dice = plain(entry.get("dice_after"))
        if isinstance(dice, (int, float)) and not isinstance(dice, bool):
            scores.append({"case": "held-out slices of the case it learned from", "structure": str(entry.get("id")),
                           "dice": round(float(dice), 4), "trained_on": True})
    return scores


def _write(card: ModelCard, state: Any, teaching: Sequence[TeachingCase], registry: Registry,
           build: Callable | None) -> ModelCard:
    """Stage, try, rename."""
    from .loading import load_model, save_model

    _check_card(card)
    target = registry.user / card.key
    try:
        with staged_folder(target) as staging:
            if teaching:
                write_teaching(teaching, staging)
            saved = save_model(card, state, staging, dtype="float16")
            load_model(saved, build=build, registry=registry)
    except OutputError as error:
        raise OutputError(str(error).replace(str(staging), str(target))) from None
    except FileExistsError:
        raise ModelError(f"There is a model in {target} already, written while this one was made; choose another "
                         "name.") from None
    except OSError as error:
        raise OutputError(f"The new version could not be written into {registry.user} ({error.strerror or error}); "
                          "free some space or make the folder writable. Nothing was changed.") from None
    return read_card(target)


def _check_card(card: ModelCard) -> None:
    """A card that could not be read again is refused before anything is written."""
    card_from_dict({**card_to_dict(card), "weights": {"file": "weights.safetensors", "sha256": "0" * 64, "bytes": 1,
                                                      "dtype": "float16"}}, where=f"The card of '{card.title}'")


def _merged(card: ModelCard, folder: Path, registry: Registry | None, cancel: CancelToken | None) -> ModelCard:
    """A version as a whole model in `folder`."""
    from .loading import load_model, save_model

    model = load_model(card, cancel=cancel, registry=registry)
    training = {**card.training, "adaptation": card.adaptation}
    return save_model(replace(card, adaptation=None, training=training), model.network, folder)
