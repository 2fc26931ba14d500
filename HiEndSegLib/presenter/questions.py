"""What only the person can decide before a segmentation starts. The first choice does the most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import wording
from .state import Choice, Question

if TYPE_CHECKING:
    from .inputs import VolumeFacts
    from .outputs import Target
    from .pieces import Order

_ = wording.translator(__name__)


def transform_question(number: int, facts: VolumeFacts) -> Question:
    """The volume lies under a non-linear transform."""
    return Question(number, "transform", _(
        '"{volume}" lies under the non-linear transform "{transform}". Segmented as it is, the voxels from before the '
        "transform are used and the result is bent with the volume. On a hardened copy, the bent voxels are used.")
        .format(volume=facts.name, transform=facts.transform_name),
        (Choice("as_is", _("Segment as it is")), Choice("harden", _("Use a hardened copy")), _cancel()))


def frames_question(number: int, facts: VolumeFacts) -> Question:
    """The volume shows one time point of a sequence."""
    return Question(number, "frames", _(
        '"{volume}" shows one of {count} time points. Segment all of them into a sequence of segmentations?').format(
        volume=facts.name, count=facts.frames),
        (Choice("all", _("All {count} time points").format(count=facts.frames)),
         Choice("this", _("Only this one")), _cancel()))


def existing_question(number: int, target: Target, order: Order, in_region: bool) -> Question:
    """There is a segmentation already that the result could go into."""
    names = {label.id: label.name for label in order.card.labels}
    there = wording.listing(names[id_] for id_ in target.present if id_ in names)
    if not target.present:
        text = _('"{segmentation}" holds an earlier result of this volume. Add {names} to it, or make a new '
                 "segmentation?").format(segmentation=target.name, names=wording.listing(names[i] for i in order.ids))
        first = _("Add")
    elif in_region:
        text = _('"{segmentation}" already holds {names}. Replace them inside the region of interest (the rest stays, '
                 "and you can undo), or make a new segmentation?").format(segmentation=target.name, names=there)
        first = _("Replace")
    else:
        text = _('"{segmentation}" already holds {names}. Replace them (the rest stays, and you can undo), or make a '
                 "new segmentation?").format(segmentation=target.name, names=there)
        first = _("Replace")
    return Question(number, "existing", text,
                    (Choice("replace", first), Choice("new", _("New segmentation")), _cancel()))


def _cancel() -> Choice:
    return Choice("cancel", _("Cancel"))
