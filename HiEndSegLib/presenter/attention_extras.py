"""What can be done beside looking at one map: pictures, ranks, object queries, uncertainty, keeping, 3D. Part of
`AttentionPresenter`."""

from __future__ import annotations

from typing import Any

from ..errors import Cancelled, HiEndSegError
from . import wording
from .attention_ask import Question

_ = wording.translator(__name__)

#: Pixels of the longer side of a slice in the pictures.
_PICTURE = 120


class Extras:
    """What there is of them. jobs: of the engine, that are polled until they are over."""

    def __init__(self, jobs: list | None = None):
        self.jobs: list[Any] = [] if jobs is None else jobs
        self.running: Any = None                # the uncertainty job whose answer is wanted
        self.running_for: tuple = ()            # volume as it was, and model
        self._said: Any = None                  # its progress, as shown
        for job in self.jobs:
            job.cancel()
        self.heads_wanted = self.side_by_side = False
        self.saved_id: str | None = None
        self.forget_volume()

    def clear(self) -> None:
        """The map is hidden."""
        self.heads_picture = self.compare_picture = b""
        self.stamp: Any = None
        self.uncertainty_shown = False

    def point_moved(self) -> None:
        """What was said about the place before."""
        self.inspect: Any = None
        self.inspect_error, self.inspect_picture = "", b""

    def forget_model(self) -> None:
        """What was said by the model before; a map of uncertainty is dropped by the presenter."""
        self.point_moved()
        self.clear()
        self.ranks: list[Any] = []
        self.rank_picture, self.rank_error = b"", ""
        self.uncertainty: Any = None
        self.uncertainty_error = ""

    def forget_volume(self) -> None:
        self.forget_model()
        self.uncertainty_id: str | None = None
        self.cancel()

    def cancel(self) -> None:
        if self.running is not None:
            self.running.cancel()
            self.running = None

    def drop(self) -> None:
        """The engine is another one."""
        self.cancel()
        self.jobs = []
        self.forget_model()

    def tick(self) -> list[Any]:
        """Jobs that are over and whose answers are wanted; [None] where only progress moved."""
        moved = []
        for job in self.jobs:
            job.poll()
            if job is self.running and job.progress != self._said:
                moved, self._said = [None], job.progress
        over = [job for job in self.jobs if job.done]
        self.jobs = [job for job in self.jobs if not job.done]
        return [job for job in over if job is self.running] or moved


class AttentionExtras:
    """Needs `_change()`, `_stage`, `_extras`, `_line`, `_results`, `_voxels()`, `_node()`, `_engine`, `card`."""

    # ------------------------------------------------------------------------------------------ pictures

    def set_heads_wanted(self, on: bool) -> None:
        """Small pictures of all heads for the slice on screen."""
        with self._change():
            self._extras.heads_wanted, self._extras.stamp = bool(on), None
            if not on:
                self._extras.heads_picture = b""
            self._draw()

    def _pictures_are_old(self) -> bool:
        """Whether the slice on screen is another one than that of the pictures."""
        if not (self._extras.heads_wanted or self.compare != "none") or "main" not in self._results:
            return False
        return self._plane_stamp() != self._extras.stamp

    def _plane_stamp(self) -> tuple:
        from ..bridge.planes import plane_stamp

        return plane_stamp(self._scene, self._node(self._volume_id))

    def _draw_pictures(self) -> None:
        """Of the slice on screen: all heads, and both maps of a comparison."""
        extras, maps = self._extras, self._maps()
        extras.heads_picture, extras.compare_picture = b"", b""
        volume = self._node(self._volume_id)
        if volume is None or maps is None or not (extras.heads_wanted or maps[1] is not None):
            return
        from ..bridge.planes import gray_of, sample, shown_plane
        from ..pictures import Tile, small_multiples
        from .attention_maps import cells, find
        from .attention_show import head_title, map_title

        extras.stamp = self._plane_stamp()
        plane = shown_plane(self._scene, volume, self._stage.point.position, _PICTURE)
        gray, point = gray_of(volume, plane.points), self._stage.point.position
        mark = plane.mark(point) if point is not None and self.query != "structure" else None
        main, other = maps
        if extras.heads_wanted:
            question, result = self._results["main"]
            names = ["mean", *map(str, range(result.heads))] if result.heads > 1 else ["mean"]
            tiles = [Tile(head_title(name), sample(cells(find(result, main.layer, name)), plane.points, 0.0))
                     for name in names if name == "mean" or self.kind != "rollout"]
            top = max(float(tile.heat.max()) for tile in tiles)
            extras.heads_picture = small_multiples(gray, tiles, heat_colors, top=top, floor=self.threshold * top,
                                                   opacity=self.opacity, mark=mark, columns=3)
        if other is not None:
            tiles = [Tile(map_title(self, slot, one), sample(cells(one), plane.points, 0.0))
                     for slot, one in (("main", main), ("other", other))]
            extras.compare_picture = small_multiples(gray, tiles, heat_colors, top=self._stage.top,
                                                     floor=self.threshold * self._stage.top, opacity=self.opacity,
                                                     mark=mark, columns=2)

    # ------------------------------------------------------------------------------------------ the maps

    def _maps(self) -> tuple[Any, Any] | None:
        """The chosen map, and the one it is compared with (or None)."""
        if "main" not in self._results:
            return None
        from .attention_maps import find        # slow to import: a face opens before it is needed

        result = self._results["main"][1]
        main, other = find(result, self.layer, self.head), None
        if self.compare == "layer" and self.other_layer in [one.layer for one in result.maps] and \
                self.other_layer != main.layer:
            other = find(result, self.other_layer, self.head)
        elif self.compare == "model" and "other" in self._results:
            second = self._results["other"][1]
            head = self.head if self.head == "mean" or int(self.head) < second.heads else "mean"
            other = find(second, main.layer, head)
        return main, other

    @property
    def is_even(self) -> bool:
        """Whether the chosen map says next to nothing."""
        maps = self._maps()
        return maps is not None and maps[0].is_even

    def _draw_maps(self) -> None:
        """Into the scene and the views; both maps of a comparison with the same colors."""
        from .attention_maps import cells, finer
        from .attention_show import LEGEND

        main, other = self._maps()
        heats = [None if one is None else finer(one) if self.smooth else cells(one) for one in (main, other)]
        top = max(float(heat.array.max()) for heat in heats if heat is not None)
        look = {"top": top, "floor": self.threshold * top, "smooth": self.smooth}
        stage, extras = self._stage, self._extras
        shown = stage.show_map(self._volume_id, heats[0], opacity=self.opacity, legend=_(LEGEND), **look)
        stage.point.show(self.query != "structure")
        if extras.uncertainty_shown:
            self._front_uncertainty()
        self._views = shown                     # in how many
        if other is None:
            stage.drop_other()
            return
        stage.show_other(self._volume_id, heats[1], **look)
        if extras.side_by_side:
            stage.show_pair(self._volume_id, self.opacity)

    # ------------------------------------------------------------------------------------------ keeping, 3D

    def save(self) -> None:
        """The map as a volume of the scene: in all boxes, saved with it."""
        with self._change():
            maps = self._maps()
            if maps is None or self._stage.heat_id is None:
                return
            from .attention_show import map_words

            volume, result = self._node(self._volume_id), self._results["main"][1]
            try:
                self._extras.saved_id = self._stage.keep(
                    self._volume_id, _("{volume} {map}").format(volume=volume.GetName(), map=map_words(self, maps[0])),
                    " ".join([*result.sentences, maps[0].sentence, _("Values are times an even share.")]))
            except HiEndSegError as error:
                self._fail(str(error))

    def set_surface(self, on: bool) -> None:
        """The map as a cloud in the 3D views, around it the surfaces of the result."""
        with self._change():
            try:
                self._stage.show_surface(bool(on), self._segmentation_id(), self.threshold * self._stage.top)
            except HiEndSegError as error:
                self._fail(str(error))

    # ------------------------------------------------------------------------------------------ ranks, queries

    def ask_ranks(self) -> None:
        """How many directions the attention values of every block use, around the point."""
        self._ask_extra("ranks", "ranks")

    def ask_inspect(self) -> None:
        """Which object query made what around the point."""
        self._ask_extra("inspect", "inspect_queries")

    def _ask_extra(self, slot: str, operation: str) -> None:
        with self._change():
            obstacle = self.basic_obstacle
            if obstacle:
                self._fail(obstacle)
                return
            point = self._stage.point.position
            if point is None:
                self._put(self._stage.middle(self._volume_id))
                point = self._stage.point.position
            at = self._stage.in_volume(self._volume_id, point)
            self._line.ask(Question(slot, operation, self.card, self.card.key, self._voxels(self.card),
                                    (slot, *point), {"at": at}))

    def _take_extra(self, slot: str, answer: Any) -> None:
        extras, sentence = self._extras, "" if answer.error is None else str(answer.error)
        if slot == "inspect":
            extras.inspect, extras.inspect_error = answer.result, sentence
            extras.inspect_picture = b"" if answer.result is None else self._embeddings(answer.result)
            return
        extras.ranks, extras.rank_error, extras.rank_picture = answer.result or [], sentence, b""
        if extras.ranks:
            from ..pictures import bars

            taps = self.taps
            extras.rank_picture = bars([row.rank for row in extras.ranks], [str(row.layer) for row in extras.ranks],
                                       marked=[row.layer in taps for row in extras.ranks])

    def _embeddings(self, found: Any) -> bytes:
        """Where the queries lie among each other, as in figures 3 to 5 of arXiv 2511.15603."""
        from ..pictures import Dot, scatter

        colors = {label.id: tuple(label.color) for label in self.card.labels} if self.card is not None else {}
        main = found.at_point[0][0] if found.at_point else None
        panels = [[Dot(str(query.number), query.place[first], query.place[first + 1],
                       colors.get(query.classes[0][0], (128, 134, 140)), query.number == main)
                   for query in found.queries] for first in (0, 2)]
        return scatter(list(zip((_("Class embeddings"), _("Mask embeddings")), panels)))

    # ------------------------------------------------------------------------------------------ uncertainty

    def ask_uncertainty(self) -> None:
        """Where the model is unsure, over the whole volume; takes the time of a segmentation. Once more: stop it."""
        with self._change():
            extras = self._extras
            if extras.running is not None:
                extras.cancel()
                return
            obstacle = self.basic_obstacle
            if obstacle:
                self._fail(obstacle)
                return
            try:
                extras.running = self._engine.submit_uncertainty(self._stage.read(self._volume_id), model=self.card,
                                                                 device=self._device())
                extras.running_for = (self._stage.stamp(self._volume_id), self.card.key)
                extras.jobs.append(extras.running)
                extras.uncertainty_error = ""
            except HiEndSegError as error:
                extras.uncertainty_error = str(error)

    def _take_uncertainty(self, job: Any) -> None:
        extras = self._extras
        if job is None or job is not extras.running:
            return
        extras.running = None
        if isinstance(job.error, Cancelled) or self._uncertainty_is_old():
            return
        if job.error is not None:
            extras.uncertainty_error = str(job.error)
            return
        extras.uncertainty = job.result()
        self.show_uncertainty(True)

    def show_uncertainty(self, on: bool) -> None:
        """The map of uncertainty in front of the volume, in the place of the attention; off: that again."""
        with self._change():
            extras, stage = self._extras, self._stage
            if extras.uncertainty is None:
                return
            try:
                extras.uncertainty_shown = bool(on)
                if on:
                    self._front_uncertainty()
                else:
                    stage.hide_extra()
                    self._draw()
            except HiEndSegError as error:
                extras.uncertainty_error, extras.uncertainty_shown = str(error), False

    def _uncertainty_is_old(self) -> bool:
        """Whether volume or model are others than when it was asked for."""
        volume = self._node(self._volume_id)
        return volume is None or self.card is None or \
            self._extras.running_for != (self._stage.stamp(self._volume_id), self.card.key)

    def _drop_uncertainty(self) -> None:
        """Its map belongs to a volume and a model."""
        extras, node_id = self._extras, self._extras.uncertainty_id
        extras.uncertainty, extras.uncertainty_id, extras.uncertainty_error = None, None, ""
        if extras.uncertainty_shown:
            extras.uncertainty_shown = False
            self._stage.hide_extra()
        extras.cancel()
        self._stage.drop_extra(node_id)

    def _front_uncertainty(self) -> None:
        from .attention_show import UNSURE

        extras = self._extras
        extras.uncertainty_id = self._stage.show_extra(
            self._volume_id, extras.uncertainty.entropy, extras.uncertainty_id, _("Uncertainty"),
            opacity=self.opacity, floor=unsure_floor(self.threshold), legend=_(UNSURE))


def unsure_floor(threshold: float) -> float:
    """Uncertainty below which nothing is drawn."""
    return max(0.05, threshold * 0.5)


def heat_colors(shares: Any) -> Any:
    """(…, 3) colors of shares 0 to 1, as the maps in the views have them."""
    import numpy as np

    from ..bridge.heat import STOPS

    positions = [position for position, _color in STOPS]
    return np.stack([np.interp(shares, positions, [color[n] for _position, color in STOPS]) for n in range(3)], -1)
