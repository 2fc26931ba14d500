"""What works on this machine, and whether a volume fits: two questions to the engine, asked without waiting."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError
from . import wording
from .state import DeviceRow

if TYPE_CHECKING:
    from ..engine.interface import Engine, Job

_ = wording.translator(__name__)

#: Key in the settings: the device that was chosen last.
SETTING = "device"
#: The plan is asked for when nothing has changed for this long, in seconds.
QUIET = 0.3


class Machine:
    """The devices (asked once, again on request) and the plan for one volume, model and device (asked on change)."""

    def __init__(self, engine: Engine, settings: MutableMapping[str, Any], clock: Callable[[], float]):
        self.engine, self._settings, self._clock = engine, settings, clock
        self.chosen = str(settings.get(SETTING) or "auto")
        self.report: dict | None = None         # `Engine.doctor`'s, when it is there
        self.problem = ""
        self.plan_sentence, self.plan_fits = "", None
        self._doctor: Job | None = None
        self._plan: Job | None = None
        self._key: tuple | None = None          # what plan_sentence is about
        self._wanted: Callable[[], Job] | None = None
        self._due = 0.0

    # ------------------------------------------------------------------------------------------ devices

    def look(self, again: bool = False) -> None:
        """Ask for the devices, unless that was done."""
        if self._doctor is not None or (self.report is not None and not again):
            return
        self.problem = ""
        try:
            self._doctor = self.engine.submit_doctor()
        except HiEndSegError as error:
            self.problem = str(error)

    @property
    def looking(self) -> bool:
        return self._doctor is not None

    @property
    def needs_torch(self) -> bool:
        """Whether the engine has no PyTorch; False as long as nobody knows."""
        return self.report is not None and (self.report.get("versions") or {}).get("torch") is None

    def choose(self, kind: str) -> None:
        """Compute on `kind` from now on; one that is not there is refused by the run, in a sentence."""
        self.chosen = kind
        self._settings[SETTING] = kind

    @property
    def kind(self) -> str | None:
        """The device that "auto" means here; None as long as nobody knows."""
        if self.chosen != "auto":
            return "cuda:0" if self.chosen == "cuda" else self.chosen
        return next((device["kind"] for device in self._devices() if device.get("works")), None)

    def rows(self) -> tuple[DeviceRow, ...]:
        rows = [DeviceRow("auto", _("Automatic (the best that works)"), self._auto_sentence(),
                          None if self.report is None else any(d.get("works") for d in self._devices()))]
        for device in self._devices():
            rows.append(DeviceRow(device["kind"], _title(device["kind"]), device["sentence"], bool(device["works"])))
        if self.report is None:
            rows.append(DeviceRow("cpu", _title("cpu"), _("Looking at the devices…"), None))
        if all(row.kind != self.chosen for row in rows) and self.chosen != "cuda":
            rows.append(DeviceRow(self.chosen, _title(self.chosen), _(
                "{device} was chosen before and is not here now; choose another device.").format(device=self.chosen),
                None if self.report is None else False))
        return tuple(rows)

    def sentence(self) -> str:
        """What works, for the device that is chosen."""
        if self.problem:
            return self.problem
        if self.report is None:
            return _("Looking at the devices…") if self.looking else ""
        kind = self.kind
        return next((row.sentence for row in self.rows() if row.kind == kind), "") or self._auto_sentence()

    def _auto_sentence(self) -> str:
        if self.report is None:
            return _("Looking at the devices…")
        if self.needs_torch:
            return _("PyTorch is not installed yet, so nothing can be computed; open the set-up page.")
        best = next((device for device in self._devices() if device.get("works")), None)
        return best["sentence"] if best else _("No device works; open the set-up page and choose Repair.")

    def _devices(self) -> list[dict]:
        return list((self.report or {}).get("devices") or [])

    # ------------------------------------------------------------------------------------------ the plan

    def ask_plan(self, key: tuple, ask: Callable[[], Job]) -> None:
        """Ask soon for the plan of `key` (volume, model, device); `ask` submits it. Known plans are not asked again."""
        if key != self._key:
            self.drop_plan()
            self._key, self._wanted, self._due = key, ask, self._clock() + QUIET

    def drop_plan(self) -> None:
        """Forget plan and question. A question that is being answered is left alone: stopping it would cost the worker
        that is just warming up, and its answer is passed over."""
        if self._plan is not None and self._plan.state == "idle":
            self._plan.cancel()
        self._plan = self._key = self._wanted = None
        self.plan_sentence, self.plan_fits = "", None

    # ------------------------------------------------------------------------------------------ both

    def tick(self, may_ask: bool) -> bool:
        """Take in answers; True where something changed. may_ask: no long job is in the way of a new question."""
        changed = False
        if self._doctor is not None:
            self._doctor.poll()
        if self._plan is not None:
            self._plan.poll()
        if self._doctor is not None and self._doctor.done:
            job, self._doctor = self._doctor, None
            if job.error is None:
                self.report, self.problem = job.result(), ""
            else:
                self.problem = str(job.error)
            changed = True
        if self._plan is not None and self._plan.done:
            job, self._plan = self._plan, None
            if job.error is None:
                plan = job.result()
                self.plan_sentence, self.plan_fits = plan.sentence, plan.fits
            else:
                self.plan_sentence, self.plan_fits = str(job.error), None
            changed = True
        if self._wanted is not None and may_ask and self._clock() >= self._due:
            ask, self._wanted = self._wanted, None
            try:
                self._plan = ask()
                self.plan_sentence = _("Planning the memory…")
            except HiEndSegError as error:
                self.plan_sentence = str(error)
            changed = True
        return changed

    def close(self) -> None:
        """Listen to no answer any more."""
        self.drop_plan()
        self._doctor = None


def _title(kind: str) -> str:
    if kind == "cpu":
        return _("CPU")
    if kind == "mps":
        return _("Apple graphics processor")
    return _("Graphics card {number}").format(number=kind.partition(":")[2] or "0")
