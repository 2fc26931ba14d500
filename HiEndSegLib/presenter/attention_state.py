"""What the Attention section shows: plain frozen data, made anew whenever something changes.

Ids, never nodes. Colors are (r, g, b), 0 to 255. All texts are for people and translated already. Blocks and heads are
numbered from 0, also in texts, as on the command line. Pictures are PNG files as bytes. A face binds widgets:

    presenter = AttentionPresenter(scene=scene, engine=engine, registry=registry, segment=segment)
    presenter.changed.connect(self.show)            # reads presenter.state
    presenter.enter()                               # the section is on screen
    presenter.press()                               # the big button: show a map, or hide it again
    presenter.place_point()                         # the next click in a view is the question

More actions: set_model, set_query, set_structure, set_object_query, set_kind, set_layer, set_head, set_opacity,
set_threshold, set_smooth, set_compare, set_other_layer, set_other_model, set_side_by_side, set_heads_wanted, save,
set_surface, ask_ranks, ask_uncertainty, show_uncertainty, ask_inspect, point_at, point_at_crosshair; tick, leave,
close; about the scene scene_saving, scene_saved, scene_closing, scene_closed, node_removed.
"""

from __future__ import annotations

from dataclasses import dataclass

#: "off" nothing is shown · "starting" the first map is computed · "shown" · "failed" the last request was refused (a
#: map that was there stays in the views). `working` says whether the engine computes for us, in any phase.
PHASES = ("off", "starting", "shown", "failed")


@dataclass(frozen=True)
class QueryKindRow:
    """Where the question starts: "point", "structure" (voxels of a segment) or "query" (an object query)."""

    id: str
    title: str
    sentence: str
    enabled: bool = True


@dataclass(frozen=True)
class MapKindRow:
    """What is looked at: "encoder" (one block), "rollout" (all blocks up to one) or "head" (the mask head)."""

    id: str
    title: str
    sentence: str
    enabled: bool = True


@dataclass(frozen=True)
class LayerRow:
    """One encoder block. tap: one of those whose output the Hi-End-MAE paper reads, which slider marks show."""

    layer: int
    title: str
    tap: bool


@dataclass(frozen=True)
class HeadRow:
    """id: "mean", or a head's number from 0 as text; what `set_head` takes."""

    id: str
    title: str


@dataclass(frozen=True)
class ModelChoice:
    """id: "torso-ct-tiny@1.0.0", what `set_model` and `set_other_model` take."""

    id: str
    title: str


@dataclass(frozen=True)
class StructureChoice:
    """A segment that can be asked about. id: what `set_structure` takes."""

    id: str
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class LegendRow:
    """A color of the map and what it stands for, from the weakest to the strongest."""

    value: float
    text: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class RankRow:
    """One encoder block: how many directions its attention values use, of how many."""

    layer: int
    title: str
    rank: float
    of: int


@dataclass(frozen=True)
class InspectRow:
    """One object query of the model's head, in the window around the point.

    number: what `set_object_query` takes. structure: what it speaks for; probability of that. made: names of the
    structures that it made the most of here. share: of the answer at the point, None where it has none. near_classes,
    near_masks: the queries whose class and whose mask embeddings are closest to its own, "7 (0.93)". sentence: all of
    it, for a tooltip.
    """

    number: int
    title: str
    structure: str
    probability: float
    share: float | None
    made: tuple[str, ...] = ()
    near_classes: tuple[str, ...] = ()
    near_masks: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True)
class ConfidenceRow:
    """How sure the model is of a structure where it drew it, 0 to 1."""

    id: str
    name: str
    color: tuple[int, int, int]
    confidence: float
    sentence: str = ""


@dataclass(frozen=True)
class AttentionState:
    """Everything the Attention section shows.

    headline: one sentence, always there. meaning: what the colors of this map mean, in one sentence.
    """

    # what happens
    phase: str = "off"
    working: bool = False
    fraction: float = 0.0
    headline: str = ""
    detail: str = ""
    button_text: str = ""
    button_enabled: bool = False
    button_tooltip: str = ""
    # what is asked
    volume_id: str | None = None
    segmentation_id: str | None = None      # whose segments can be asked about
    models: tuple[ModelChoice, ...] = ()
    model_id: str | None = None
    queries: tuple[QueryKindRow, ...] = ()
    query: str = "point"
    point_id: str | None = None             # the markups node with the one point
    point: tuple[float, float, float] | None = None     # mm, RAS of the world
    point_text: str = ""
    placing: bool = False                   # the next click in a view sets the point
    structures: tuple[StructureChoice, ...] = ()
    structure: str | None = None
    object_query: int | None = None
    kinds: tuple[MapKindRow, ...] = ()
    kind: str = "encoder"
    layers: tuple[LayerRow, ...] = ()
    layer: int = 0
    layer_text: str = ""
    heads: tuple[HeadRow, ...] = ()
    head: str = "mean"
    # how it is shown
    heat_id: str | None = None
    opacity: float = 0.5
    threshold: float = 0.0                  # share of the strongest value below which nothing is drawn
    threshold_text: str = ""
    smooth: bool = True
    legend: tuple[LegendRow, ...] = ()
    legend_title: str = ""
    legend_picture: bytes = b""
    meaning: str = ""
    # compared with
    compare: str = "none"                   # "none", "layer" or "model"
    compare_models: tuple[ModelChoice, ...] = ()
    other_layer: int = 0
    other_layer_text: str = ""
    other_model_id: str | None = None
    other_heat_id: str | None = None
    compare_sentence: str = ""              # how alike the two maps are
    side_by_side: bool = False              # two slice views of our own are on screen
    side_by_side_available: bool = False
    # pictures
    heads_wanted: bool = False
    heads_picture: bytes = b""              # the shown slice, one small picture per head
    compare_picture: bytes = b""            # the shown slice with both maps
    rank_available: bool = False
    rank_working: bool = False
    rank: tuple[RankRow, ...] = ()
    rank_picture: bytes = b""
    rank_sentence: str = ""
    # kept and 3D
    can_save: bool = False
    saved_id: str | None = None
    surface_available: bool = False         # there is a graphics card to draw it with
    surface: bool = False
    # how sure the model is, and why
    uncertainty_available: bool = False
    uncertainty_tooltip: str = ""
    uncertainty_working: bool = False
    uncertainty_id: str | None = None
    uncertainty_shown: bool = False
    uncertainty_sentence: str = ""
    confidence: tuple[ConfidenceRow, ...] = ()
    inspect_available: bool = False
    inspect_tooltip: str = ""
    inspect_working: bool = False
    inspect: tuple[InspectRow, ...] = ()
    inspect_picture: bytes = b""            # the queries among each other, by class and by mask embedding
    inspect_sentence: str = ""

    @property
    def busy(self) -> bool:
        """Whether the timer has to go on although nobody looks."""
        return self.working or self.rank_working or self.uncertainty_working or self.inspect_working or self.placing
