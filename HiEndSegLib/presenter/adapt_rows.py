"""The checklist "Teach these": what was drawn, what differs from the model's answer, and what the person checked."""

from __future__ import annotations

from . import wording
from .adapt_comparing import Compared, Comparison
from .adapt_state import TeachRow

_ = wording.translator(__name__)


class Rows:
    """Rows of one comparison. What a person checked or unchecked stays so when the same case is compared again."""

    def __init__(self) -> None:
        self.comparison: Comparison | None = None
        self._said: dict[str, bool] = {}        # by the person

    def fill(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def clear(self) -> None:
        """Another case, or another model: nothing is known of it."""
        self.comparison = None
        self._said = {}

    def forget_comparison(self) -> None:
        """The same case changed: compare again, but what was checked counts."""
        self.comparison = None

    def check(self, id_: str, on: bool) -> None:
        if any(one.label.id == id_ for one in self._structures()):
            self._said[id_] = bool(on)

    def checked(self) -> list[str]:
        """Ids of what is taught, in the segmentation's order."""
        return [one.label.id for one in self._structures() if self._is_checked(one)]

    def names(self) -> dict[str, str]:
        return {one.label.id: one.label.name for one in self._structures()}

    def rows(self) -> tuple[TeachRow, ...]:
        return tuple(TeachRow(one.label.id, one.label.name, tuple(one.label.color), self._is_checked(one), one.is_new,
                              one.dice, one.changed_ml, _sentence(one)) for one in self._structures())

    def sentence(self) -> str:
        """How many are taught, and what happens to all others."""
        if self.comparison is None:
            return ""
        checked = len(self.checked())
        if not checked:
            first = _("Nothing is checked; check what the model is to learn.")
        elif _knows_nothing(self.comparison):
            first = _("{count} of {all} structures are taught; the new model will know no other.").format(
                count=checked, all=len(self._structures()))
        elif checked == 1:
            first = _("1 structure is taught; all others are protected.")
        else:
            first = _("{count} structures are taught; all others are protected.").format(count=checked)
        words = [first]
        untouched = self.comparison.untouched
        if untouched:
            words.append(_("Without a segment, and protected: {names}.").format(names=wording.listing(untouched)))
        words += self.comparison.messages
        return " ".join(words)

    def _structures(self) -> tuple[Compared, ...]:
        return () if self.comparison is None else self.comparison.structures

    def _is_checked(self, one: Compared) -> bool:
        return self._said.get(one.label.id, _worth_teaching(one, self.comparison))


def _worth_teaching(one: Compared, comparison: Comparison) -> bool:
    """Corrected structures are checked; new ones wait for the person, unless there is nothing else (an encoder)."""
    if one.drawn_ml == 0:
        return False
    return _knows_nothing(comparison) if one.is_new else one.differs


def _knows_nothing(comparison: Comparison) -> bool:
    """Nothing that is drawn is known, and nothing else is: an encoder, so far."""
    return all(other.is_new for other in comparison.structures) and not comparison.untouched


def _sentence(one: Compared) -> str:
    read_as = ""
    if one.how in ("terminology", "name") and one.segment_name.casefold() != one.label.name.casefold():
        read_as = _('The segment "{segment}" is read as this.').format(segment=one.segment_name)
    if one.drawn_ml == 0:
        what = _("Nothing is drawn, so nothing can be learned.")
    elif one.drawn_ml is None:
        what = _("New to this model.")
    elif one.is_new:
        what = _("New to this model; {volume} drawn.").format(volume=_milliliters(one.drawn_ml))
    elif one.dice is None or one.changed_ml is None:
        what = _("{volume} drawn.").format(volume=_milliliters(one.drawn_ml))
    elif one.differs:
        what = _("Corrected: {volume} changed, Dice {dice}.").format(volume=_milliliters(one.changed_ml),
                                                                     dice=f"{one.dice:.2f}")
    elif one.changed_ml > 0:
        what = _("Nearly as the model has it ({volume} changed).").format(volume=_milliliters(one.changed_ml))
    else:
        what = _("As the model has it.")
    return " ".join(filter(None, (what, read_as, one.sentence)))


def _milliliters(count: float) -> str:
    if count >= 10:
        return _("{count} ml").format(count=f"{count:.0f}")
    return _("{count} ml").format(count=f"{count:.2g}" if count >= 0.01 else "0.01")
