"""What a person drew against what the model says: read from the scene, compared, and looked at for mistakes.

Nothing here waits or keeps nodes. All functions raise `HiEndSegError` where the scene has no such thing (any more).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError, InputError
from . import wording

if TYPE_CHECKING:
    from ..geometry.labels import Label
    from ..geometry.volume import Volume
    from ..models.card import ModelCard

_ = wording.translator(__name__)

#: A structure counts as corrected from this much on, or below this Dice; drawn on another lattice, only below the
#: second one, because resampling moves borders by half a voxel.
_CHANGED_ML, _SAME_DICE, _RESAMPLED_DICE = 1.0, 0.98, 0.95


@dataclass(frozen=True)
class Answer:
    """The model's own label map of a volume, and of which state of the volume it is."""

    volume_id: str
    voxels_of: int          # modification time of the volume's image
    model: str              # the card's checksum
    labels: Volume

    def fits(self, scene: Any, volume_id: str, card: ModelCard) -> bool:
        """Whether it is what `card` would say of the volume as it is now."""
        node = scene.GetNodeByID(volume_id)
        if (volume_id != self.volume_id or card.checksum != self.model or node is None or node.GetImageData() is None
                or node.GetImageData().GetMTime() != self.voxels_of):
            return False
        from ..bridge.volumes import volume_view

        try:
            return volume_view(node).same_lattice(self.labels)
        except HiEndSegError:
            return False


@dataclass(frozen=True)
class Compared:
    """One structure that was drawn. dice, changed_ml: as in `TeachRow`. differs: it was corrected.

    drawn_ml: all of it; None where it is a surface, without voxels yet.
    """

    label: Label
    is_new: bool
    segment_name: str
    how: str
    drawn_ml: float | None
    dice: float | None = None
    changed_ml: float | None = None
    differs: bool = False
    sentence: str = ""          # what is doubtful about it


@dataclass(frozen=True)
class Comparison:
    """structures: in the segmentation's order. untouched: names of the model's structures without a segment."""

    structures: tuple[Compared, ...]
    untouched: tuple[str, ...]
    messages: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What is handed to the engine: image, label map, what its values mean, and what was noticed about it."""

    volume: Volume
    labels: Volume
    legend: list[Label]
    messages: tuple[str, ...]
    findings: tuple[Any, ...]       # `operations.adapt_checks.Finding`s of what is taught


def known_labels(card: ModelCard | None, dictionary: Sequence[Label]) -> list[Label]:
    """What the model knows. Of an encoder (no card): structures of another model, so that ids and names stay usual."""
    return list(card.labels if card is not None else dictionary)


def drawn_in(scene: Any, segmentation_id: str, legend: Sequence[Label], all_new: bool = False) -> list:
    """`bridge.structures.Drawn` of every segment; all_new: recognized by the legend, but nothing knows them."""
    from ..bridge.structures import drawn_structures

    drawn = drawn_structures(_node(scene, segmentation_id, _segmentation_gone()), legend)
    return [replace(one, how="new") for one in drawn] if all_new else drawn


def compare(scene: Any, volume_id: str, segmentation_id: str, card: ModelCard | None, dictionary: Sequence[Label],
            answer: Answer | None) -> Comparison:
    """Every drawn structure against the answer (None: an encoder has none)."""
    import numpy as np

    from ..bridge.corrections import read_correction
    from ..bridge.volumes import volume_view

    volume = _node(scene, volume_id, _volume_gone())
    view = volume_view(volume)
    segmentation = _node(scene, segmentation_id, _segmentation_gone())
    legend = known_labels(card, dictionary)
    drawn = drawn_in(scene, segmentation_id, legend, all_new=card is None)
    if all(one.empty for one in drawn):
        raise InputError(_('Nothing is drawn in "{name}"; segment the volume, correct the result, and choose it '
                           "here.").format(name=segmentation.GetName()))
    left_out = segmentation.GetSegmentation().GetNumberOfSegments() - len(drawn)
    own = [one for one in drawn if not one.is_new]
    structures: dict[str, Compared] = {}
    messages: tuple[str, ...] = ()
    if own:
        correction = read_correction(segmentation, volume, legend, model=None if answer is None else answer.labels,
                                     drawn=own)
        messages = _told(correction)
        counts, together = _count(correction, None if answer is None else answer.labels)
        labels = correction.labels
        doubts = _doubts(counts, together, correction.legend, card, labels.spacing,
                         [one.label.id for one in own if not one.empty])
        for one in own:
            structures[one.segment_id] = replace(
                _compared(one, counts, together, labels.voxel_ml, one.label.id in correction.resampled),
                sentence=_about(one, doubts, ("tiny", "no-overlap", "swapped")))
    voxel_ml = view.voxel_ml
    for one in drawn:
        if one.is_new:
            counts = np.zeros(256, np.int64)
            counts[one.label.value] = round((one.milliliters or 0) / voxel_ml)
            doubts = () if not one.milliliters else _doubts(counts, None, [one.label], card, view.spacing,
                                                            [one.label.id])
            structures[one.segment_id] = Compared(one.label, True, one.segment_name, one.how, one.milliliters,
                                                  sentence=_about(one, doubts, ("tiny",)))
    if left_out > 0:
        messages += (_("{count} more segments are not listed: a model has at most 254 structures.").format(
            count=left_out),)
    there = {one.label.id for one in drawn}
    names = tuple(label.name for label in (card.labels if card is not None else ()) if label.id not in there)
    return Comparison(tuple(structures[one.segment_id] for one in drawn), names, messages)


def read_case(scene: Any, volume_id: str, segmentation_id: str, card: ModelCard | None, dictionary: Sequence[Label],
              answer: Answer | None, taught: Collection[str]) -> Case:
    """What is drawn now, for the engine. New structures that are not taught are left out: their voxels are nobody's.

    Raises InputError where a structure that is to be taught is not there any more.
    """
    from ..bridge.corrections import read_correction
    from ..bridge.volumes import volume_from_node

    volume = _node(scene, volume_id, _volume_gone())
    segmentation = _node(scene, segmentation_id, _segmentation_gone())
    legend = known_labels(card, dictionary)
    drawn = drawn_in(scene, segmentation_id, legend, all_new=card is None)
    gone = set(taught) - {one.label.id for one in drawn}
    if gone:
        raise InputError(_("{names}: no longer in the segmentation; compare again.").format(
            names=wording.listing(sorted(gone))))
    wanted = [one for one in drawn if not one.is_new or one.label.id in taught]
    model = answer.labels if answer is not None and card is not None else None
    correction = read_correction(segmentation, volume, legend, model=model, drawn=wanted)
    image = volume_from_node(volume)
    counts, together = _count(correction, model)
    findings = _doubts(counts, together, correction.legend, card, image.spacing, list(taught))
    return Case(image, correction.labels, correction.legend, _told(correction), findings)


def _count(correction: Any, model: Volume | None) -> tuple:
    """(voxels of each value, voxels of each pair of values or None), as `operations.adapt_checks` counts them."""
    from ..operations.adapt_checks import pair_counts, value_counts

    if model is None:
        return value_counts(correction.labels.array), None
    together = pair_counts(correction.labels.array, model.array)
    return together.sum(axis=1), together


def _doubts(counts: Any, together: Any, legend: Sequence[Label], card: ModelCard | None, spacing: Sequence[float],
            structures: Sequence[str]) -> tuple:
    """`operations.adapt_checks` on voxels that were counted."""
    from ..operations.adapt_checks import look_at_counts

    return tuple(look_at_counts(counts, together, legend, card if card is not None else _Nothing(), spacing,
                                list(structures)))


def _about(one: Any, findings: Sequence[Any], kinds: Collection[str]) -> str:
    return " ".join(finding.sentence for finding in findings
                    if one.label.id in finding.ids and finding.kind in kinds)


def _told(correction: Any) -> tuple[str, ...]:
    """What was decided in reading; new structures that are not taught are left out on purpose."""
    return tuple(message for message in correction.messages if "left out" not in message)


class _Nothing:
    """What an encoder knows, in place of a card: no structure, and no lattice of its own yet."""

    labels: Sequence = ()
    spacing = (1.5, 1.5, 1.5)


def _compared(one: Any, counts: Any, together: Any, voxel_ml: float, resampled: bool) -> Compared:
    value = one.label.value
    voxels = int(counts[value])
    result = Compared(one.label, False, one.segment_name, one.how, voxels * voxel_ml)
    if together is None:
        return result
    was, both = int(together[:, value].sum()), int(together[value, value])
    dice = 2 * both / (was + voxels) if was + voxels else None
    changed = (was + voxels - 2 * both) * voxel_ml
    differs = dice is not None and (dice < _RESAMPLED_DICE if resampled else changed >= _CHANGED_ML
                                    or dice < _SAME_DICE)
    return replace(result, dice=dice, changed_ml=changed, differs=differs)


def _node(scene: Any, node_id: str, sentence: str) -> Any:
    node = scene.GetNodeByID(node_id)
    if node is None:
        raise InputError(sentence)
    return node


def _volume_gone() -> str:
    return _("The volume is no longer in the scene; choose another one.")


def _segmentation_gone() -> str:
    return _("The segmentation is no longer in the scene; choose another one.")
