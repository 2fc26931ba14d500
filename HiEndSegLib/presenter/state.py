"""What the Segment section shows: plain frozen data, made anew whenever something changes.

Ids, never nodes: a node may be gone when a face reads the state. Colors are (r, g, b), 0 to 255. All texts are for
people and translated already; a face shows them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

#: "idle" waiting · "starting" reading the volume, engine and model · "running" · "cancelling" asked to stop ·
#: "failed" and "done" how the last one ended; a new one can be started as from "idle".
PHASES = ("idle", "starting", "running", "cancelling", "failed", "done")
BUSY = frozenset({"starting", "running", "cancelling"})


@dataclass(frozen=True)
class ModelRow:
    """One model of the list.

    id: "torso-ct-tiny@1.0.0", what `set_model` takes. structures: names. expected_seconds: on this machine for the
    chosen volume, None where it was not measured yet; speed_sentence says either. score_sentence: what was measured
    and on what. tooltip: several lines for people who want to know more.
    parent: of a version, the model it was adapted from and stands under in the list (""), depth levels below a whole
    model; adapted_sentence says from what and when. teaching: whether cases it learned from are kept beside it.
    """

    id: str
    title: str
    structures: tuple[str, ...]
    modality: str
    megabytes: float
    licence: str
    expected_seconds: float | None
    speed_sentence: str
    score_sentence: str
    version: str = ""
    description: str = ""
    shipped: bool = False
    default: bool = False
    tooltip: str = ""
    parent: str = ""
    depth: int = 0
    adapted_sentence: str = ""
    teaching: bool = False


@dataclass(frozen=True)
class StructureRow:
    """One line of the checklist "only these structures"."""

    id: str
    name: str
    color: tuple[int, int, int]
    checked: bool


@dataclass(frozen=True)
class DeviceRow:
    """kind: what `set_device` takes: "auto", "cuda:0", "mps", "cpu". works: None while it is being found out."""

    kind: str
    title: str
    sentence: str
    works: bool | None


@dataclass(frozen=True)
class Choice:
    id: str
    text: str


@dataclass(frozen=True)
class Question:
    """Something only the person can decide. Show text and choices, then call `answer(choice.id)`.

    number: a new question has a new number. The choice "cancel" is always there, and changes nothing.
    """

    number: int
    id: str
    text: str
    choices: tuple[Choice, ...]
    default: str = "cancel"


@dataclass(frozen=True)
class Offer:
    """What would help after a failure.

    action: "verify_model", "choose_model", "setup", "device_cpu", "again" or "roi".
    """

    action: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """How one volume or frame of several ended. ok: it was segmented; sentence: why not, or what to know."""

    name: str
    ok: bool
    sentence: str


@dataclass(frozen=True)
class SegmentState:
    """Everything the Segment section shows.

    headline: one sentence, always there. detail: what is done right now, why it failed, or what to know about the
    result; may be several sentences. seconds_left: None where nobody knows yet; time_text the same in words.
    """

    # what happens
    phase: str = "idle"
    fraction: float = 0.0
    seconds_left: float | None = None
    time_text: str = ""
    headline: str = ""
    detail: str = ""
    log: tuple[str, ...] = ()
    button_text: str = ""
    button_enabled: bool = False
    button_tooltip: str = ""
    question: Question | None = None
    offers: tuple[Offer, ...] = ()
    outcomes: tuple[Outcome, ...] = ()      # of a batch or a sequence, in order
    # what goes in
    volume_id: str | None = None
    volume_sentence: str = ""               # what it is, and what is unusual about it
    volume_warning: str = ""                # MR given to a CT model and the like; Segment stays possible
    frames: int = 0                         # time points where the volume is the proxy of a sequence
    roi_id: str | None = None
    roi_sentence: str = ""
    # models
    models: tuple[ModelRow, ...] = ()       # those that match the filter
    model_filter: str = ""
    model_id: str | None = None             # stays chosen when the filter hides it
    model_sentence: str = ""
    model_problems: tuple[str, ...] = ()    # folders that cannot be used, in sentences
    structures: tuple[StructureRow, ...] = ()
    structures_sentence: str = ""
    # machine
    devices: tuple[DeviceRow, ...] = ()
    device: str = "auto"
    device_sentence: str = ""
    plan_sentence: str = ""
    plan_fits: bool | None = None
    needs_setup: bool = False               # packages are missing; show the set-up page
    # what comes out
    output_id: str | None = None            # chosen by the person; None: a new segmentation, or asked
    segmentation_id: str | None = None      # of the last result for this volume
    table_id: str | None = None
    show_3d: bool = False
    undo_available: bool = False
    redo_available: bool = False

    @property
    def busy(self) -> bool:
        return self.phase in BUSY
