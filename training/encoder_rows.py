"""Encoders to compare, by name: ``NAME=FOLDER`` for an exported one, or a name that stands for no pre-training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from torch import Tensor

from HiEndSegLib.errors import OptionError
from HiEndSegLib.models.encoders import EncoderCard, load_encoder_weights, read_encoder

from .oneshot_cases import map_of


@dataclass(frozen=True)
class Row:
    """A line of a table. weights: SHA-256 of the encoder; about: what its description says; None without an encoder."""

    name: str
    folder: Path | None = None
    weights: str = ""
    about: dict | None = None

    def load(self) -> dict[str, Tensor] | None:
        """The encoder's tensors under `VisionTransformer3D` names."""
        return None if self.folder is None else load_encoder_weights(self.folder)


def parse_rows(texts: Sequence[str], plain: Sequence[str]) -> list[Row]:
    """Rows from the command line; `plain`: names that need no folder.

    Raises OptionError: neither plain nor NAME=FOLDER, or a name twice; ModelError: no exported encoder in the folder.
    """
    rows = []
    for text in texts:
        name, _, folder = text.partition("=")
        if name in plain and not folder:
            rows.append(Row(name))
            continue
        if not name or not folder or name in plain:
            raise OptionError(f"A row is {', '.join(plain)} or NAME=FOLDER (an exported encoder), not {text!r}.")
        card = read_encoder(folder)
        rows.append(Row(name, Path(folder).resolve(), card.weights["sha256"], _about(card)))
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise OptionError(f"Each row needs a name of its own, and there are {', '.join(names)}.")
    return rows


def check_heads(row: Row, network: dict) -> None:
    """OptionError if the row's encoder has another number of attention heads, of which its tensors hold no trace."""
    told = (row.about or {}).get("num_heads")
    if told and told != network["num_heads"]:
        raise OptionError(f"Row {row.name} has {told} attention heads and the network {network['num_heads']}; choose "
                          "its --variant.")


def _about(card: EncoderCard) -> dict:
    """What a table needs to know; plain values, kept with every result. names: what it was pre-trained on, if told."""
    training, recipe = card.training, card.training.get("recipe", {})
    names = training.get("volumes")
    if not isinstance(names, list):
        entries = training.get("data") if isinstance(training.get("data"), list) else []
        names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    held = recipe.get("held_out", []) if isinstance(recipe, dict) else []
    count = recipe.get("volumes") if isinstance(recipe, dict) else None
    return {"id": card.id, "version": card.version, "title": card.title, "method": training.get("method"),
            "steps": training.get("step"), "spacing": card.spacing, "window": card.window and list(card.window),
            "crop": card.crop, "num_heads": card.network["num_heads"], "volumes": count or len(names) or None,
            "names": [name for name in names if isinstance(name, str)],
            "held_out": [name for name in held if isinstance(name, str)]}


# ------------------------------------------------------------------------------------- what a pre-training has seen


def seen(case: str, about: dict) -> bool | None:
    """Whether pre-training saw a case: None where its description does not tell. Volumes go by their path without
    extension; an entry may have * in it."""
    if any(_fits(case, name) for name in about.get("held_out", ())):
        return False
    if not about.get("names"):
        return None
    return any(_fits(case, name) for name in about["names"])


def kindred(case: str, about: dict) -> bool:
    """Whether pre-training saw an image of the same organ map, this one or another."""
    number = map_of(case)
    return number is not None and any(map_of(part) == number or fnmatch(case, part)
                                      for name in about.get("names", ()) for part in _parts(name))


def _fits(case: str, name: str) -> bool:
    return any(fnmatch(case, part) for part in _parts(name))


def _parts(name: str) -> list[str]:
    return re.split(r"[/\\#~]", name)
