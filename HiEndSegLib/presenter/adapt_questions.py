"""What only the person can decide while a model is adapted. The first choice is the one that keeps most."""

from __future__ import annotations

from . import wording
from .state import Choice, Question

_ = wording.translator(__name__)


def sides_question(number: int, sentence: str) -> Question:
    """Left and right look swapped. sentence: which, and how it was found."""
    return Question(number, "sides", sentence, (
        Choice("keep", _("Keep them as drawn")), Choice("swap", _("Swap left and right")),
        Choice("cancel", _("Cancel"))))


def stop_question(number: int) -> Question:
    """There is something to keep already."""
    return Question(number, "stop", _("Stop now? The best version so far can be kept."), (
        Choice("finish", _("Keep the best so far")), Choice("discard", _("Stop and keep nothing")),
        Choice("cancel", _("Go on"))))


def discard_question(number: int) -> Question:
    """The best so far is being written."""
    return Question(number, "stop", _("The best version so far is being finished. Stop all the same, and keep "
                                      "nothing?"), (
        Choice("cancel", _("Let it finish")), Choice("discard", _("Stop and keep nothing"))))


def delete_question(number: int, version: str, parent: str) -> Question:
    """After a revert."""
    return Question(number, "delete", _('"{parent}" is used again. Delete the version "{version}"? This cannot be '
                                        "undone.").format(parent=parent, version=version), (
        Choice("cancel", _("Keep the version")), Choice("delete", _("Delete it"))))
