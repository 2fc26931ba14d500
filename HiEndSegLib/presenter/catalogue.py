"""The models a person may choose from, told in what matters for choosing, and the structures of the chosen one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError
from ..models.family import adapted_on, family_order
from . import wording
from .state import ModelRow, StructureRow

if TYPE_CHECKING:
    from ..models.card import ModelCard
    from ..models.registry import Registry

_ = wording.translator(__name__)

#: Key in the settings: the model that was chosen last, by id without version.
SETTING = "model"


class Catalogue:
    """Cards of the registry, the chosen one, the filter, and what is checked of each model's structures."""

    def __init__(self, registry: Registry, settings: MutableMapping[str, Any]):
        self._registry, self._settings = registry, settings
        self.cards: list[ModelCard] = []
        self.problems: tuple[str, ...] = ()
        self.missing_package = ""               # what reading cards needs and is not installed
        self.filter = ""
        self._chosen: str | None = None         # key
        self._unchecked: dict[str, frozenset[str]] = {}
        self._teaching: frozenset[str] = frozenset()     # keys of versions with cases beside them

    # ------------------------------------------------------------------------------------------------ the list

    def refresh(self) -> None:
        """Read the folders again. The chosen model stays chosen; one that is gone gives way to the default."""
        try:
            self.cards = list(self._registry.list())
            self.problems = tuple(str(problem) for problem in self._registry.problems)
            self.missing_package = ""
            self._teaching = _with_teaching(self.cards)
        except ModuleNotFoundError as error:
            self.cards, self.missing_package = [], str(error.name)
            self.problems = (_("The models cannot be read before HiEndSeg is set up ({package} is missing).").format(
                package=error.name),)
        except HiEndSegError as error:
            self.cards, self.problems = [], (str(error),)
        if self.card is None:
            wanted = str(self._settings.get(SETTING) or "")
            again = [card for card in self.cards if wanted and card.id == wanted]
            chosen = again or self.cards
            self._chosen = chosen[0].key if chosen else None

    def find(self, id_: str) -> ModelCard | None:
        """By "id@version", or by id alone (its newest version)."""
        return next((card for card in self.cards if id_ in (card.key, card.id)), None)

    def choose(self, id_: str) -> bool:
        """Choose a model; False where there is none of this id."""
        card = self.find(id_)
        if card is None:
            return False
        self._chosen = card.key
        self._settings[SETTING] = card.id
        return True

    @property
    def card(self) -> ModelCard | None:
        """The chosen model's card."""
        return next((card for card in self.cards if card.key == self._chosen), None)

    def rows(self, expected: Callable[[ModelCard], float | None]) -> tuple[ModelRow, ...]:
        """Models that match the filter, each version under its parent. expected: seconds for a card on this machine,
        or None."""
        words, rows, depth = self.filter.casefold().split(), [], {}
        for card, parent in family_order(self.cards):
            depth[card.key] = 0 if parent is None else depth[parent.key] + 1
            if _matches(card, words):
                rows.append(self._row(card, expected(card), parent, depth[card.key]))
        return tuple(rows)

    def sentence(self, expected: float | None) -> str:
        """The chosen model in one line, or what to do where there is none."""
        card = self.card
        if card is None:
            return _("No model is installed; add one in the section Models.")
        return " ".join(filter(None, (adapted_sentence(card), score_sentence(card), speed_sentence(expected))))

    def _row(self, card: ModelCard, expected: float | None, parent: ModelCard | None, depth: int) -> ModelRow:
        shipped = self._registry.is_shipped(card)
        row = ModelRow(
            id=card.key, title=card.title, structures=tuple(label.name for label in card.labels),
            modality=card.modality, megabytes=round(card.weights["bytes"] / 1e6, 1), licence=_first_line(card.licence),
            expected_seconds=expected, speed_sentence=speed_sentence(expected), score_sentence=score_sentence(card),
            version=card.version, description=card.description, shipped=shipped, default=card is self.cards[0],
            parent="" if parent is None else parent.key, depth=depth, adapted_sentence=adapted_sentence(card),
            teaching=card.key in self._teaching,
            tooltip="\n".join(filter(None, (
                card.description,
                _("{count} structures: {names}").format(count=len(card.labels),
                                                        names=", ".join(label.name for label in card.labels)),
                _("{modality} at {spacing} mm, {size}, {licence}").format(
                    modality=card.modality, spacing=" x ".join(f"{v:g}" for v in card.spacing),
                    size=wording.megabytes(card.weights["bytes"]), licence=_first_line(card.licence)),
                score_sentence(card), speed_sentence(expected)))))
        return row

    # ------------------------------------------------------------------------------------------ structures

    def structures(self) -> tuple[StructureRow, ...]:
        card = self.card
        if card is None:
            return ()
        unchecked = self._unchecked.get(card.key, frozenset())
        return tuple(StructureRow(label.id, label.name, tuple(label.color), label.id not in unchecked)
                     for label in card.labels)

    def structures_sentence(self) -> str:
        rows = self.structures()
        checked = sum(row.checked for row in rows)
        if not rows:
            return ""
        if checked == len(rows):
            return _("All {count} structures").format(count=checked)
        return _("{checked} of {count} structures").format(checked=checked, count=len(rows))

    def check(self, ids: Iterable[str] | None) -> None:
        """Check exactly these structures of the chosen model (None: all); unknown ids are passed over."""
        card = self.card
        if card is not None:
            wanted = {label.id for label in card.labels} if ids is None else set(ids)
            self._unchecked[card.key] = frozenset(label.id for label in card.labels if label.id not in wanted)

    def checked(self) -> list[str]:
        """Ids of the checked structures, in the card's order."""
        return [row.id for row in self.structures() if row.checked]

    def only(self) -> list[str] | None:
        """The checked ids as the engine takes them: None where all are checked."""
        checked = self.checked()
        return None if len(checked) == len(self.structures()) else checked


def speed_sentence(expected: float | None) -> str:
    if expected is None:
        return _("Not measured yet on this computer.")
    return _("About {time} on this computer.").format(time=wording.seconds(expected))


def adapted_sentence(card: ModelCard) -> str:
    """Of a version, what it was adapted from and when; "" of a whole model."""
    if not card.is_version:
        return ""
    parent = card.adaptation["parent"]
    return _("Adapted from {parent} on {date}.").format(parent=parent.get("title") or parent["id"],
                                                        date=adapted_on(card))


def score_sentence(card: ModelCard) -> str:
    """What was measured and on what; cases that were trained on are named as such. Cards are not trusted here."""
    unseen, seen = {}, {}
    for entry in card.scores:
        dice, case, structure = (entry.get(key) for key in ("dice", "case", "structure"))
        if isinstance(dice, (int, float)) and not isinstance(dice, bool) and 0 <= dice <= 1:
            group = seen if entry.get("trained_on", False) else unseen
            key = (str(case), str(structure))
            group[key] = min(float(dice), group.get(key, 1.0))      # measured in two ways: the lower counts
    scores = unseen or seen
    if not scores:
        return _("Its card names no score.")
    values, cases = list(scores.values()), len({case for case, _structure in scores})
    if unseen:
        template = _("Dice {mean} on average ({low} to {high}) over {count} structures in {cases} cases it was not "
                     "trained on.") if cases > 1 else \
            _("Dice {mean} on average ({low} to {high}) over {count} structures in one case it was not trained on.")
    else:
        template = _("Dice {mean} on average ({low} to {high}) over {count} structures in {cases} cases it was trained "
                     "on; expect less on others.") if cases > 1 else \
            _("Dice {mean} on average ({low} to {high}) over {count} structures in one case it was trained on; expect "
              "less on others.")
    return template.format(mean=f"{sum(values) / len(values):.2f}", low=f"{min(values):.2f}",
                           high=f"{max(values):.2f}", count=len(values), cases=cases)


def _with_teaching(cards: list[ModelCard]) -> frozenset[str]:
    from ..models.teaching import has_teaching

    return frozenset(card.key for card in cards if has_teaching(card))


def _matches(card: ModelCard, words: list[str]) -> bool:
    """Whether every word occurs in title, id, modality or the name of a structure."""
    text = " ".join([card.title, card.key, card.modality, *(label.name for label in card.labels),
                     *(label.id for label in card.labels)]).casefold()
    return all(word in text for word in words)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
