"""Before and after on the slices: the taught structures as the old and as the adapted model draw them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ..engine.failures import as_failure
from ..errors import Cancelled, InputError
from . import wording
from .adapt_run import Work

if TYPE_CHECKING:
    from ..engine.interface import Engine, Job
    from ..geometry.volume import Volume

_ = wording.translator(__name__)


class Overlay:
    """Two outline nodes at most. `show` asks the engine for the adapted model's answer; `hide` takes all away."""

    def __init__(self, scene: Any, clock: Callable[[], float], others: Callable[[], bool]):
        self._scene, self._clock, self._others = scene, clock, others
        self._work: Work | None = None
        self._ids: tuple[str, ...] = ()
        self._place: Callable[[Any], None] | None = None
        self.volume_id: str | None = None
        self.problem = ""

    @property
    def busy(self) -> bool:
        return self._work is not None

    @property
    def work(self) -> Work | None:
        return self._work

    @property
    def shown(self) -> bool:
        return self.busy or bool(self._ids)

    @property
    def ids(self) -> tuple[str, ...]:
        return self._ids

    def sentence(self) -> str:
        if self._work is not None:
            return _("The adapted model segments the case for the comparison: {what} ({share} %)").format(
                what=self._work.message(), share=round(100 * self._work.fraction))
        if len(self._ids) == 2:
            return _("Thin lines: before. Bold lines: the adapted model.")
        return _("Bold lines: the adapted model.") if self._ids else self.problem

    def show(self, engine: Engine, volume_id: str, card: Any, before: Volume | None, before_legend: Collection[Any],
             wanted: Collection[str], device: str) -> None:
        """card: of the adapted model. before: the old model's label map on the volume's lattice, where it is known."""
        from ..bridge.volumes import volume_from_node

        self.volume_id, self.problem = volume_id, ""
        scene = self._scene

        def submit() -> Job:
            node = scene.GetNodeByID(volume_id)
            if node is None:
                raise InputError(_("The volume is no longer in the scene; choose another one."))
            return engine.submit_segment(volume_from_node(node), model=card, device=device)

        def place(result: Any) -> None:
            node = scene.GetNodeByID(volume_id)
            if node is None:
                raise InputError(_("The volume is no longer in the scene; choose another one."))
            maps = [] if before is None else [("before", before, before_legend, _("{volume} before adapting"))]
            maps.append(("after", result.labels, card.labels, _("{volume} after adapting")))
            self._ids = _add(node, maps, wanted)

        self._place = place
        self._work = Work(submit, self._clock, None, engine, self._others)

    def hide(self) -> list[Job]:
        """Take the outlines off the slices, and stop making them. Returns jobs that end by themselves."""
        jobs = self._work.drop() if self._work is not None else []
        self._work = self._place = None
        self._remove()
        return jobs

    def tick(self) -> bool:
        """True while something may have changed."""
        if self._work is None:
            return False
        self._work.tick()
        if self._work.over:
            work, place, self._work = self._work, self._place, None
            self._place = None
            error = work.error
            if error is None:
                try:
                    place(work.result)
                except Exception as failure:    # noqa: BLE001 - whatever a scene may throw is said in a sentence
                    self._remove()
                    error = as_failure(failure)
            if error is not None and not isinstance(error, Cancelled):
                self.problem = str(error)
        return True

    def removed(self, node_id: str) -> list[Job]:
        """A node is gone: an outline that somebody deleted takes the other one with it; so does the volume."""
        if node_id in self._ids or (self.shown and node_id == self.volume_id):
            self._ids = tuple(id_ for id_ in self._ids if id_ != node_id)
            return self.hide()
        return []

    def clear(self) -> list[Job]:
        """The scene loses all nodes."""
        self._ids = ()
        return self.hide()

    def _remove(self) -> None:
        from ..bridge.outlines import remove_segmentation

        ids, self._ids = self._ids, ()
        for id_ in ids:
            node = self._scene.GetNodeByID(id_)
            if node is not None:
                remove_segmentation(node)


def _add(volume_node: Any, maps: list, wanted: Collection[str]) -> tuple[str, ...]:
    """Outline nodes of the maps with the wanted structures in them; all of them, or none and an error."""
    import numpy as np

    from ..bridge.outlines import add_outlines, remove_segmentation

    made = []
    try:
        for style, labels, legend, name in maps:
            legend = [label for label in legend if label.id in wanted]
            keep = np.zeros(256, np.uint8)
            keep[[label.value for label in legend]] = [label.value for label in legend]
            made.append(add_outlines(labels.with_array(keep[labels.array]), legend, volume_node, style,
                                     name.format(volume=volume_node.GetName())))
    except BaseException:
        for node in made:
            remove_segmentation(node)
        raise
    return tuple(node.GetID() for node in made)
