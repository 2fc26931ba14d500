"""`AttentionPresenter`: the Attention section's state machine. Everything a face needs is in `state`.

off → starting → shown | failed. The map follows the point: one question is in flight, of those that wait the latest is
asked next (`attention_ask.py`). The presenter holds ids, never nodes; volume and model are those of the Segment section
until another model is chosen. Slice views, mouse mode and layout are given back as they were when the map is hidden,
the section is left, the scene is saved or closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError
from . import wording
from .attention_ask import Line, Question
from .attention_asking import MAIN, AttentionAsking
from .attention_choices import AttentionChoices
from .attention_extras import AttentionExtras, Extras
from .attention_show import show
from .attention_state import AttentionState
from .attention_stage import Stage
from .catalogue import Catalogue
from .choosing import id_of
from .signals import Signal

if TYPE_CHECKING:
    from ..engine.interface import Engine
    from ..models.registry import Registry
    from ..operations.attend_result import AttentionResult
    from .segment import SegmentPresenter

_ = wording.translator(__name__)


class AttentionPresenter(AttentionAsking, AttentionChoices, AttentionExtras):
    """State and actions of the Attention section.

    scene: a vtkMRMLScene. engine: an `Engine`; not closed here. segment: the Segment section's presenter, whose volume,
    model and device are used; without one use `set_volume` and `set_model`. Actions raise nothing that a person can
    cause: it is said in the state.
    """

    def __init__(self, *, scene: Any, engine: Engine, registry: Registry,
                 settings: MutableMapping[str, Any] | None = None, segment: SegmentPresenter | None = None,
                 clock: Callable[[], float] = time.monotonic):
        self._scene, self._segment, self._clock = scene, segment, clock
        self._catalogue = Catalogue(registry, {})
        self._stage = Stage(scene, self._point_changed)
        self._extras = Extras()
        self._line = self._line_of(engine)
        self._volume_id: str | None = None
        self._own_model = False                 # another model than Segment's was chosen
        self._other_key: str | None = None
        self._open = self._away = self._closed = False
        self._phase, self._error = "off", ""
        self._results: dict[str, tuple[Question, AttentionResult]] = {}
        self._keys: dict[tuple, str] = {}       # volume keys, by the volume as it was
        self._moving = False                    # the point changes by our own doing
        self._depth, self._views = 0, 0
        self._taps: dict[tuple[str, str], tuple[int, ...]] = {}
        self.query, self.kind, self.compare, self.head = "point", "encoder", "none", "mean"
        self.layer: int | None = None           # None: the last of those that the library shows by itself
        self.other_layer: int | None = None
        self.structure: str | None = None
        self.object_query: int | None = None
        self.opacity, self.threshold, self.smooth = 0.5, 0.4, True
        self.changed = Signal()
        if segment is not None:
            segment.changed.connect(self._segment_changed)
        self._state = show(self)

    @property
    def state(self) -> AttentionState:
        return self._state

    # ------------------------------------------------------------------------------------------ the big button

    def press(self) -> None:
        """Show a map, or hide it again."""
        if self._open:
            self.hide()
        else:
            self.show()

    def show(self) -> None:
        """Ask about the point (put into the middle of the slice on screen where there is none) and show the answer."""
        with self._change():
            if self._closed or self.obstacle:
                return
            self._open, self._error, self._phase = True, "", "starting"
            self._need_point()
            self._stage.point.show(True)
            self._ask()

    def hide(self) -> None:
        """The map goes, and views, mouse and layout are as before. The point stays for the next time."""
        with self._change():
            self._hide()

    def enter(self) -> None:
        """The section is on screen (again)."""
        with self._change():
            self._away = False
            self.refresh()
            self.show_again()

    def leave(self) -> None:
        """The section is not on screen any more: views are given back until it is entered again."""
        with self._change():
            self._away = True
            self._stage.give_back()

    def refresh(self) -> None:
        """Read models and the Segment section's choices again, and where volume and point are now."""
        with self._change():
            self._catalogue.refresh()
            self._follow_segment()
            if self._extras.uncertainty is not None and self._uncertainty_is_old():
                self._drop_uncertainty()
            if not self._away:
                self._ask()

    def set_volume(self, node: Any) -> None:
        """The volume to look at, as a node, an id or None; where there is a Segment section, it is that one's."""
        with self._change():
            self._take_volume(id_of(node))

    def tick(self) -> None:
        """Take in what the engine has to say. Never waits; cheap when nothing goes on."""
        self._stage.point.settle()
        said = self._line.busy, self._line.fraction, self._line.message
        answers = self._line.tick()
        extras = self._extras.tick()
        moved = self._open and not self._away and self._pictures_are_old()
        if self._open and not self._away and self._stage.new_views(self._volume_id):
            self.show_again()
        if answers or extras or moved or said != (self._line.busy, self._line.fraction, self._line.message) or \
                self._state.placing != self._stage.point.placing:
            with self._change():
                for answer in answers:
                    self._take(answer)
                for job in extras:
                    self._take_uncertainty(job)
                if moved and not self._line.busy:
                    self._draw_pictures()

    # ------------------------------------------------------------------------------------------ the scene

    def scene_saving(self) -> None:
        """The scene is about to be written: it must not name a map that is not in it."""
        self._stage.give_back()

    def scene_saved(self) -> None:
        with self._change():
            self.show_again()

    def scene_closing(self) -> None:
        """The scene is about to lose all nodes: views are as before first, so that nothing of ours outlives it."""
        with self._change():
            self._hide()
            self._stage.forget()
            self._extras = Extras(self._extras.jobs)
            self._volume_id, self.structure, self.object_query = None, None, None
            self._keys = {}

    def scene_closed(self) -> None:
        self.refresh()

    def node_removed(self, node_id: str) -> None:
        """A node is about to be or was removed. Call it for every node; most do not matter here."""
        mine = (self._volume_id, *self._stage.ids, self._extras.saved_id, self._extras.uncertainty_id)
        if node_id not in mine and node_id != self._segmentation_id():
            self._stage.removed(node_id)
            return
        with self._change():
            if node_id == self._volume_id:
                self._hide()
                self._take_volume(None)
            elif node_id == self._extras.saved_id:
                self._extras.saved_id = None
            elif node_id == self._segmentation_id():
                self._stage.surface_gone()
                self.structure = None
            elif self._stage.removed(node_id):
                self._hide()

    def close(self) -> None:
        """The window goes away: views as before, nothing of ours left in the scene. May be called twice."""
        self.changed.disconnect_all()
        if self._segment is not None:
            self._segment.changed.disconnect(self._segment_changed)
        if not self._closed:
            self._hide()
            self._stage.remove_all(self._extras.uncertainty_id)
        self._closed = True

    def set_engine(self, engine: Engine) -> None:
        """Use another engine from now on; whatever was asked of the old one is dropped."""
        with self._change():
            self._hide()
            self._line.drop()
            self._line = self._line_of(engine)
            self._drop_uncertainty()
            self._extras.drop()

    # ------------------------------------------------------------------------------------------ showing

    def _draw(self) -> None:
        """The maps that are there, as the choices say."""
        if not self._open or self._away or self._closed or MAIN not in self._results:
            return
        try:
            self._draw_maps()
            if not self._line.busy:
                self._draw_pictures()
        except HiEndSegError as error:
            self._fail(str(error))

    def show_again(self) -> None:
        """In all views: after they were given back for a while, or when some came."""
        if self._open and not self._away:
            self._stage.point.show(self.query != "structure")
            self._draw()
        elif self._extras.uncertainty_shown and not self._away:
            self._front_uncertainty()

    def _hide(self) -> None:
        """Back to "off": nothing asked, nothing in the views."""
        self._open = False
        self._phase, self._error = "off", ""
        self._line.drop()
        self._results = {}
        self._extras.clear()
        self._stage.clear()

    # ------------------------------------------------------------------------------------------ inside

    def _point_changed(self) -> None:
        """The point was set or dragged, by a person or by us."""
        if self._moving or self._closed:
            return
        with self._change():
            self._extras.point_moved()
            if self._stage.point.position is None:
                return
            if not self._open:
                if not self.obstacle:
                    self._open, self._phase = True, "starting"
            self._ask()

    def _need_point(self) -> None:
        """A question about a point needs one: in the middle of the slice on screen, to be dragged from there."""
        point = self._stage.point
        if self.query != "structure" and point.position is None and not point.placing and not self.obstacle:
            self._put(self._stage.middle(self._volume_id))

    def _put(self, world: Any) -> None:
        self._moving = True
        try:
            self._stage.point.put(world)
        finally:
            self._moving = False

    def _segment_changed(self) -> None:
        """Another volume or model was chosen there; most changes do not matter here."""
        state = self._segment.state
        other_model = not self._own_model and state.model_id and self.card is not None and \
            state.model_id != self.card.key
        if state.volume_id != self._volume_id or other_model or state.segmentation_id != self._state.segmentation_id \
                or bool(self.obstacle) == self._state.button_enabled and not self._open:
            self.refresh()

    def _follow_segment(self) -> None:
        if self._segment is None:
            return
        state = self._segment.state
        if state.model_id and not self._own_model and (self.card is None or self.card.key != state.model_id):
            before = self.card
            self._catalogue.choose(state.model_id)
            self._model_changed(before)
        if state.volume_id != self._volume_id:
            self._take_volume(state.volume_id)

    def _take_volume(self, volume_id: str | None) -> None:
        if volume_id != self._volume_id:
            self._hide()
            self._volume_id = volume_id
            self._drop_uncertainty()
            self._extras.forget_volume()
            self._stage.volume_changed()

    def _model_changed(self, before: Any) -> None:
        """Results of the model of before are no answer any more; a block of another network is another block."""
        self._results, self.object_query = {}, None
        if before is None or self.card is None or before.network != self.card.network:
            self.layer = self.other_layer = None
        self._drop_uncertainty()
        self._extras.forget_model()
        if self.query == "query":
            self.query = "point"
        self._ask()

    def _segmentation_id(self) -> str | None:
        return None if self._segment is None else self._segment.state.segmentation_id

    def _device(self) -> str:
        return "auto" if self._segment is None else self._segment.state.device

    def _line_of(self, engine: Engine) -> Line:
        self._engine = engine
        return Line(engine, self._device)

    def _node(self, node_id: str | None) -> Any:
        return self._scene.GetNodeByID(node_id) if node_id else None

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Actions inside each other make one change."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and not self._closed:
                state = show(self)
                if state != self._state:
                    self._state = state
                    self.changed.emit()
