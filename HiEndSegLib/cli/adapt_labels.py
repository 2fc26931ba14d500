"""The label map that a model is taught from: what its values mean, said by the file, a JSON beside it or the model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

import numpy as np

from ..errors import InputError, OptionError
from ..geometry.labels import Label, structure_id
from ..geometry.volume import Volume

#: The value of voxels of which nobody has said what they are.
OPEN = 255
_MAX_BYTES = 1024 * 1024
_NEW = re.compile(r"(?:(?P<value>\d{1,3}):)?(?P<id>[a-z0-9][a-z0-9_-]{0,63})=(?P<name>.{1,100})")


@dataclass(frozen=True)
class NewStructure:
    """One --new: the id and name of a structure the model does not know, and its value where the labels name none."""

    id: str
    name: str
    value: int | None = None


@dataclass(frozen=True)
class Taught:
    """labels: uint8, 0 background, 255 open. legend: what its other values mean. notes: sentences for the person."""

    labels: Volume
    legend: list[Label]
    notes: list[str]


def new_structures(texts: Sequence[str] | None) -> list[NewStructure]:
    """--new ID=NAME or VALUE:ID=NAME; OptionError for anything else."""
    found = []
    for text in texts or ():
        match = _NEW.fullmatch(text.strip())
        if match is None:
            raise OptionError(f"--new '{text}' is not ID=NAME (as in cyst=\"Renal cyst\"), or VALUE:ID=NAME where the "
                              "labels have no names; an id has small letters, digits and _.")
        value = match["value"]
        found.append(NewStructure(match["id"], match["name"].strip(), None if value is None else int(value)))
    return found


def read_taught(path: str | Path, known: Sequence[Label], new: Sequence[NewStructure] = ()) -> Taught:
    """Read labels and find out what their values mean.

    Names come from the file (a .seg.nrrd, or a NIfTI of ours), else from `<name>.json` or `labels.json` beside it,
    else the values are taken for the model's. A structure is the model's where its id, terminology or name is. known:
    the model's labels. new: structures that are named on the command line.
    Raises InputError and OptionError.
    """
    from ..geometry.writing import read_labels

    path = Path(path)
    labels, legend = read_labels(path)
    notes, source = labels.notes, path.name
    if not legend:
        beside = json_beside(path)
        if beside is not None:
            legend, source = legend_from_json(beside), beside.name
        else:
            legend, source = list(known), "the model" if known else path.name
            if known:
                notes.append(f"{path.name} names no structure, and there is no labels.json beside it; its values were "
                             "taken for the model's.")
    present = [int(value) for value in np.unique(labels.array) if value]
    if not [value for value in present if value != OPEN]:
        raise InputError(f"{path.name} is empty: no voxel of it has a label; draw the structures to teach, or choose "
                         "another file.")
    legend = as_known([label for label in legend if label.value != OPEN or label.value in present], known)
    legend = _with_new(legend, new, present, source)
    if any(label.value == OPEN for label in legend):
        raise InputError(f"{path.name} gives a structure the value {OPEN}, which means 'not annotated'; give it "
                         "another value.")
    names = [structure_id(label.name) for label in legend]
    doubled = sorted({label.name for label, name in zip(legend, names)
                      if names.count(name) > 1 or sum(other.id == label.id for other in legend) > 1})
    if doubled:
        raise InputError(f"{path.name} holds more than one {', '.join(doubled)}; merge them, or rename one.")
    named = {label.value for label in legend}
    unnamed = [value for value in present if value not in named and value != OPEN]
    if unnamed:
        array = labels.array.copy()
        array[np.isin(array, unnamed)] = OPEN
        labels = labels.with_array(array)
        notes.append(f"Voxels of the values {', '.join(map(str, unnamed))} were left out, because nobody says what "
                     "they are; name one with --new VALUE:ID=NAME.")
    return Taught(labels, [label for label in legend if label.value in present or _is_new(label, new)], notes)


def as_known(legend: Sequence[Label], known: Sequence[Label]) -> list[Label]:
    """The legend with the model's ids, names and colors wherever a structure is one of the model's.

    By id, else by terminology, else by name, and each of the model's once. Others get an id that fits a card.
    """
    rules = (lambda mine, theirs: mine.id == theirs.id,
             lambda mine, theirs: _meaning(mine) is not None and _meaning(mine) == _meaning(theirs),
             lambda mine, theirs: structure_id(mine.name) in (theirs.id, structure_id(theirs.name)))
    found: dict[int, Label] = {}
    taken: set[str] = set()
    for rule in rules:
        for number, mine in enumerate(legend):
            matches = [theirs for theirs in known if theirs.id not in taken and rule(mine, theirs)]
            if number not in found and len(matches) == 1:
                found[number] = matches[0]
                taken.add(matches[0].id)
    forbidden = {label.id for label in known}
    result = []
    for number, mine in enumerate(legend):
        if number in found:
            result.append(replace(found[number], value=mine.value))
        else:
            id_ = mine.id if re.fullmatch("[a-z][a-z0-9_]{0,63}", mine.id) and mine.id not in forbidden else \
                structure_id(mine.name or mine.id, mine.terminology, forbidden)
            forbidden.add(id_)
            result.append(replace(mine, id=id_, name=" ".join(mine.name.split())[:100] or id_))
    return result


def wanted(structures: Sequence[str] | None, taught: Taught, new: Sequence[NewStructure]) -> list[str]:
    """The ids to teach: those of --structures (an id or a name each) and of --new; OptionError for one that is not
    there, and where nothing is asked for."""
    there = [label for label in taught.legend]
    asked = [name.strip() for value in structures or () for name in value.split(",") if name.strip()]
    ids = []
    for name in [*asked, *(one.id for one in new)]:
        found = next((label.id for label in there if name == label.id), None) or next(
            (label.id for label in there if name.casefold() == label.name.casefold()), None)
        if found is None:
            raise OptionError(f"The labels hold no structure '{name}'; they hold: {_listed(there)}.")
        ids.append(found)
    if not ids:
        raise OptionError(f"Say which structures to teach with --structures; the labels hold: {_listed(there)}.")
    return list(dict.fromkeys(ids))


def json_beside(path: Path) -> Path | None:
    """`<name>.json` or `labels.json` in the folder of the labels, None where there is neither."""
    from ..geometry.reading import stem

    return next((candidate for candidate in (path.with_name(f"{stem(path)}.json"), path.with_name("labels.json"))
                 if candidate.is_file()), None)


def legend_from_json(path: Path) -> list[Label]:
    """{"1": "liver"} or {"liver": 1}, also under "labels", or a list of a card's label entries. Raises InputError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES // 1024} kB")
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(data, dict) and isinstance(data.get("labels"), (dict, list)):
            data = data["labels"]
        if isinstance(data, list):
            entries = [(int(entry["value"]), str(entry.get("id") or entry["name"]), str(entry.get("name") or
                                                                                      entry["id"])) for entry in data]
        elif all(str(key).isdigit() for key in data):
            entries = [(int(key), str(name), str(name)) for key, name in data.items()]
        else:
            entries = [(int(value), str(name), str(name)) for name, value in data.items()]
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror or error}); check its permissions.") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path.name} does not say what the labels mean ({error}); write it as "
                         '{"1": "liver", "2": "spleen"}.') from None
    entries = [entry for entry in entries if 0 < entry[0] < OPEN]
    if len({value for value, _, _ in entries}) < len(entries):
        raise InputError(f"{path.name} gives a value to two structures; write one name for each value.")
    return [Label(value, id_, name.replace("_", " ").capitalize() if name == id_ else name, _color(value))
            for value, id_, name in sorted(entries)]


def _with_new(legend: list[Label], new: Sequence[NewStructure], present: Sequence[int], source: str) -> list[Label]:
    """The legend with what --new says; OptionError where it names nothing that is there."""
    legend = list(legend)
    for one in new:
        number = next((n for n, label in enumerate(legend) if (label.value == one.value if one.value is not None else
                       one.id in (label.id, structure_id(label.name)))), None)
        if number is not None:
            legend[number] = replace(legend[number], id=one.id, name=one.name)
        elif one.value in present:
            legend.append(Label(one.value, one.id, one.name, _color(one.value)))
        else:
            what = f"value {one.value}" if one.value is not None else f"structure '{one.id}'"
            raise OptionError(f"--new names the {what}, which is not in the labels; {source} names {_listed(legend)}, "
                              f"and the values drawn are {', '.join(map(str, present))}.")
    return legend


def _is_new(label: Label, new: Sequence[NewStructure]) -> bool:
    return any(label.id == one.id for one in new)


def _listed(legend: Sequence[Label]) -> str:
    return ", ".join(label.id for label in legend) or "nothing"


def _meaning(label: Label) -> tuple | None:
    """Codes of type and side; None where the terminology says nothing specific (Slicer calls a new segment tissue)."""
    type_ = (label.terminology or {}).get("type")
    if not type_ or type_[1] == "85756007":
        return None
    return tuple(type_[:2]), tuple((label.terminology.get("modifier") or ("", ""))[:2])


def _color(value: int) -> tuple[int, int, int]:
    """A color of its own for every value, for structures whose file has none."""
    import colorsys

    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(value * 0.618034 % 1, 0.55, 0.9))
