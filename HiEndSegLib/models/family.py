"""Models and the versions adapted from them: who belongs to whom, and names that are still free. Cards alone.

A version's weights are changes to its *base*, always a whole model. Its *parent* is what the person adapted: the base
itself, or another version of the base. A parent may be deleted, a base may not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from ..errors import ModelError
from .card import ModelCard
from .card_schema import MAX_NAME

if TYPE_CHECKING:
    from .registry import Registry


def find_base(card: ModelCard, cards: Iterable[ModelCard], damaged: Mapping[str, str] | None = None) -> ModelCard:
    """The whole model among `cards` that a version changes, known by the checksum of its weights.

    damaged: key -> sentence, models that are there and cannot be used.
    Raises ModelError: it is not there, or its weights are others than those the version was made for.
    """
    wanted = card.adaptation["base"]
    whole = [other for other in cards if not other.is_version]
    named = [other for other in whole if (other.id, other.version) == (wanted["id"], wanted["version"])]
    for other in named + whole:                     # the very bytes under another name serve as well
        if other.checksum == wanted["sha256"]:
            return other
    key = f"{wanted['id']}@{wanted['version']}"
    if named:
        raise ModelError(f"{card.title} ({card.key}) consists of changes to the model {key} with the checksum "
                         f"{wanted['sha256'][:12]}…, and the one installed here has {named[0].checksum[:12]}…: it was "
                         "changed since. Put the former one back to use this version.")
    if damaged and key in damaged:
        raise ModelError(f"{card.title} ({card.key}) consists of changes to the model {key}, which cannot be used: "
                         f"{damaged[key]}")
    raise ModelError(f"{card.title} ({card.key}) consists of changes to the model {key}, which is not installed; add "
                     "that model first ('hiendseg models add').")


def find_parent(card: ModelCard, cards: Iterable[ModelCard]) -> ModelCard | None:
    """What a version was adapted from, where it is among `cards`."""
    if not card.is_version:
        return None
    wanted = card.adaptation["parent"]
    same = [other for other in cards if other.checksum == wanted["sha256"] and other.key != card.key]
    return next((other for other in same if other.id == wanted["id"]), same[0] if same else None)


def family_order(cards: Iterable[ModelCard]) -> list[tuple[ModelCard, ModelCard | None]]:
    """The cards with every version right under what it was adapted from, each with that parent.

    A version whose parent was deleted stands under its base. Versions of one parent stand in the order of their dates;
    everything else keeps its order.
    """
    cards = list(cards)
    parents = {}
    for card in cards:
        if card.is_version:
            parent = find_parent(card, cards)
            if parent is None:
                try:
                    parent = find_base(card, cards)
                except ModelError:
                    continue
            parents[card.key] = parent
    ordered, seen = [], set()

    def place(card: ModelCard, parent: ModelCard | None) -> None:
        if card.key in seen:                            # cards that name each other must not go round for ever
            return
        seen.add(card.key)
        ordered.append((card, parent))
        children = [child for child in cards if parents.get(child.key) is card]
        for child in sorted(children, key=lambda child: child.adaptation["date"]):
            place(child, card)

    for card in [card for card in cards if card.key not in parents] + cards:
        place(card, None)
    return ordered


def reference(card: ModelCard) -> dict:
    """How a version's card names its base or parent."""
    return {"id": card.id, "version": card.version, "sha256": card.checksum, "title": card.title}


def adapted_on(card: ModelCard) -> str:
    """The day a version was made, "2026-08-31"."""
    return card.adaptation["date"][:10]


def now() -> str:
    """This moment for a card: local time to the second with its offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


# ------------------------------------------------------------------------------------------------------ names


def check_name(name: str, cards: Iterable[ModelCard]) -> str:
    """A person's name for a version, without spaces around it. Any letters will do: files are named by `free_id`.

    Raises ModelError: empty, too long, control characters, or used already, with the next free one.
    """
    name = str(name).strip()
    if not name:
        raise ModelError("The version needs a name; give it one that says what it learned.")
    if len(name) > MAX_NAME:
        raise ModelError(f"The name of the version has {len(name)} characters and may have {MAX_NAME}; choose a "
                         "shorter one.")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise ModelError("The name of the version holds line breaks or control characters; use letters, digits and "
                         "spaces.")
    free = free_name(name, cards)
    if free != name:
        raise ModelError(f"There is a model named '{name}' already, and no two may have the same name; '{free}' is "
                         "free.")
    return name


def free_name(name: str, cards: Iterable[ModelCard]) -> str:
    """The name itself where no model has it, else with the next free number behind it: "Liver" -> "Liver 2"."""
    taken = {_folded(card.title) for card in cards}
    if _folded(name) not in taken:
        return name
    stem, number = re.fullmatch(r"(.*?)(?: ([0-9]{1,4}))?", name, re.DOTALL).groups()
    count = int(number or 1)
    while True:
        count += 1
        tail = f" {count}"
        candidate = stem[:MAX_NAME - len(tail)].rstrip() + tail
        if _folded(candidate) not in taken:
            return candidate


def free_id(name: str, registry: Registry) -> str:
    """An id made of a name that no model and no folder of the registry has: "Läber (Anna)" -> "laber-anna"."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9_]+", "-", plain.lower()).strip("-_")[:48].rstrip("-_") or "version"
    taken = registry.ids()
    count, candidate = 1, slug
    while candidate in taken:
        count += 1
        candidate = f"{slug}-{count}"
    return candidate


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()
