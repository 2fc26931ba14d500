"""One piece of work: where its voxels come from and where its result goes. Holds ids; nodes are looked up when needed.

`read()` when its turn has come, `place()` when its answer is there. Both raise `HiEndSegError` where the scene has
changed so that it cannot be done, and then leave nothing behind.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import wording
from .inputs import look_at_region

if TYPE_CHECKING:
    from ..geometry.volume import Volume
    from ..models.card import ModelCard
    from ..operations.result import SegmentResult

_ = wording.translator(__name__)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What was asked for when the button was pressed. only: structure ids, None for all."""

    card: ModelCard
    device: str
    only: tuple[str, ...] | None = None
    roi_id: str | None = None

    @property
    def ids(self) -> list[str]:
        """Ids of the structures that will be written."""
        return [label.id for label in self.card.labels if self.only is None or label.id in self.only]

    @property
    def unit(self) -> str:
        return "HU" if self.card.modality == "CT" else "intensity"


@dataclass(frozen=True)
class Placed:
    """Ids of the nodes that a result went into, and sentences about it."""

    segmentation_id: str
    table_id: str | None
    messages: tuple[str, ...]


class NodePiece:
    """One volume node. target_id: the segmentation whose structures are replaced; None makes a new one."""

    def __init__(self, scene: Any, volume_id: str, order: Order, histories: Any, target_id: str | None = None):
        self._scene, self._histories = scene, histories
        self.volume_id, self.order, self.target_id = volume_id, order, target_id
        node = scene.GetNodeByID(volume_id)
        self.name = node.GetName() if node is not None else volume_id
        self._box: tuple | None = None
        self.voxels_of = 0              # modification time of what was read

    def needs(self, node_id: str) -> bool:
        """Whether the piece is pointless without this node."""
        return node_id == self.volume_id

    def read(self) -> tuple[Volume, tuple | None]:
        """The voxels (copied) and the region of interest as a box in mm."""
        from ..bridge.volumes import volume_from_node

        node = self._node()
        self._box = region_box(self._scene, self.order.roi_id, self.volume_id)
        volume = volume_from_node(node)
        self.voxels_of = node.GetImageData().GetMTime()
        return volume, self._box

    def place(self, result: SegmentResult) -> Placed:
        """The result as a segmentation (new, or the asked structures of the target), with its table."""
        from ..bridge.results import mark_result
        from ..bridge.segmentations import segmentation_from_labels
        from ..bridge.tables import measure_segments, write_table

        node, messages = self._node(), list(result.messages)
        if node.GetImageData() is not None and node.GetImageData().GetMTime() != self.voxels_of:
            messages.append(_('"{volume}" was changed meanwhile; the result is of what it was before.').format(
                volume=self.name))
        segmentation = self._replace(result, node, messages)
        statistics = result.statistics
        if segmentation is None:
            segmentation = segmentation_from_labels(result.labels, result.legend, node)
        else:
            statistics = measure_segments(segmentation, node)
        mark_result(segmentation, self.order.card.key)
        table_id = None
        try:
            table_id = write_table(segmentation, node, statistics, unit=self.order.unit).GetID()
        except Exception:       # noqa: BLE001 - the segmentation is there, and must not be called a failure
            _log.exception("No table")
            messages.append(_("The table of volumes could not be made; the log says why."))
        return Placed(segmentation.GetID(), table_id, tuple(dict.fromkeys(messages)))

    def _replace(self, result: SegmentResult, node: Any, messages: list[str]) -> Any:
        """The target with the asked structures replaced; None where a new segmentation has to be made."""
        from ..bridge.segmentations import region_of_box, update_segmentation

        if self.target_id is None:
            return None
        target = self._scene.GetNodeByID(self.target_id)
        if target is None:
            messages.append(_("The segmentation to replace was deleted meanwhile, so a new one was made."))
            return None
        region = None if self._box is None else region_of_box(node, self._box)
        try:
            # all of the card's structures, so that those which were not asked for keep their voxels
            update = update_segmentation(target, result.labels, self.order.card.labels, node, only=self.order.ids,
                                         region=region, save_undo=lambda: self._histories.save(target))
        except InputError as error:             # raised before anything is changed; what was computed is not lost
            messages.append(_("{why} The result was put into a new segmentation.").format(why=error))
            return None
        messages += update.messages
        return target

    def _node(self) -> Any:
        node = self._scene.GetNodeByID(self.volume_id)
        if node is None:
            raise InputError(_('"{volume}" was deleted; choose another volume.').format(volume=self.name))
        return node


class FramePiece:
    """One time point of a sequence; the results go into one output sequence, which the first of them makes.

    shared: a dict that all pieces of one run hold, for the output's id.
    """

    def __init__(self, scene: Any, volume_id: str, index: int, order: Order, shared: dict):
        from ..bridge.sequences import browser_of, frame_title

        self._scene, self._shared, self._index = scene, shared, index
        self.volume_id, self.order = volume_id, order
        node = scene.GetNodeByID(volume_id)
        browser, sequence = browser_of(node)
        if sequence is None:
            raise InputError(_('"{volume}" is not part of a sequence any more; choose it again.').format(
                volume=node.GetName()))
        self._volume_name, self._browser_id, self._sequence_id = node.GetName(), browser.GetID(), sequence.GetID()
        self.name = _("{volume}, {frame}").format(volume=self._volume_name, frame=frame_title(sequence, index))
        self._box: tuple | None = None

    def needs(self, node_id: str) -> bool:
        return node_id in (self.volume_id, self._browser_id, self._sequence_id)

    def read(self) -> tuple[Volume, tuple | None]:
        from ..bridge.sequences import read_frame

        self._node(self.volume_id)
        self._box = region_box(self._scene, self.order.roi_id, self.volume_id)
        return read_frame(self._node(self._sequence_id), self._index), self._box

    def place(self, result: SegmentResult) -> Placed:
        from ..bridge.sequences import add_frame, new_segmentation_sequence, show_beside

        volume, sequence, browser = (self._node(id_) for id_ in (self.volume_id, self._sequence_id, self._browser_id))
        output = self._scene.GetNodeByID(self._shared.get("output") or "")
        made, key = output is None, self.order.card.key
        if made:
            output = new_segmentation_sequence(sequence, f"{self._volume_name} HiEndSeg", key)
        try:
            add_frame(output, sequence, self._index, result.labels, result.legend, key)
        except BaseException:
            if made:
                self._scene.RemoveNode(output)
            raise
        self._shared["output"] = output.GetID()
        proxy = show_beside(browser, output, volume)
        return Placed(proxy.GetID(), None, tuple(result.messages))

    def _node(self, node_id: str) -> Any:
        node = self._scene.GetNodeByID(node_id)
        if node is None:
            raise InputError(_('The sequence of "{volume}" was deleted; choose another volume.').format(
                volume=self._volume_name))
        return node


def region_box(scene: Any, roi_id: str | None, volume_id: str) -> tuple | None:
    """The region of interest as a box in the volume's own RAS, mm; InputError where there is one and it is unusable."""
    if roi_id is None:
        return None
    facts = look_at_region(scene, roi_id, volume_id)
    if not facts.usable:
        raise InputError(facts.sentence)
    return facts.box
