"""Quick or full: what the engine plans for this case, what earlier adaptations took here, and what was chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError
from . import wording
from .adapt_state import SpeedRow

if TYPE_CHECKING:
    from ..engine.interface import Job

_ = wording.translator(__name__)

#: Keys in the settings: the speed that was chosen last ("" leaves it to the device), and seconds a step by
#: "model|device|speed" as JSON.
SPEED, TIMES = "adapt_speed", "adapt_times"
SPEEDS = ("quick", "full")
#: The plan is asked for when nothing has changed for this long, in seconds.
QUIET = 0.3
_KEPT = 50


class AdaptSpeeds:
    """The two speeds for one case, model and device. Asked on change, when the engine has nothing else to do."""

    def __init__(self, settings: MutableMapping[str, Any], clock: Callable[[], float]):
        self._settings, self._clock = settings, clock
        self._key: tuple | None = None
        self._wanted: Callable[[], Job] | None = None
        self._due = 0.0
        self._job: Job | None = None
        self._plans: dict[str, Any] = {}
        self._auto = ""
        self.problem = ""

    # ------------------------------------------------------------------------------------------ choosing

    def choose(self, speed: str) -> None:
        """"quick", "full", or "auto" to leave it to the device. Anything else is passed over."""
        if speed in (*SPEEDS, "auto"):
            self._settings[SPEED] = "" if speed == "auto" else speed

    @property
    def chosen(self) -> str:
        """What the person chose, else what the plan says fits the device; "quick" until that is known."""
        said = str(self._settings.get(SPEED) or "")
        return said if said in SPEEDS else self._auto or "quick"

    # ------------------------------------------------------------------------------------------ planning

    @property
    def planning(self) -> bool:
        return self._job is not None or self._wanted is not None

    def ask(self, key: tuple, submit: Callable[[], Job]) -> None:
        """Ask soon for the plans of `key`; known ones are not asked again."""
        if key != self._key:
            self.drop()
            self._key, self._wanted, self._due = key, submit, self._clock() + QUIET

    def drop(self) -> None:
        """Forget plans and question."""
        if self._job is not None and self._job.state == "idle":
            self._job.cancel()
        self._job = self._key = self._wanted = None
        self._plans, self._auto, self.problem = {}, "", ""

    def tick(self, may_ask: bool) -> bool:
        """Take in the answer; True where something changed."""
        if self._job is not None:
            self._job.poll()
            if not self._job.done:
                return False
            job, self._job = self._job, None
            if job.error is None:
                answer = job.result()
                self._plans = {speed: answer[speed] for speed in SPEEDS if speed in answer}
                self._auto = answer.get("auto", "") if answer.get("auto", "") in SPEEDS else ""
            else:
                self.problem = str(job.error)
            return True
        if self._wanted is not None and may_ask and self._clock() >= self._due:
            submit, self._wanted = self._wanted, None
            try:
                self._job = submit()
            except HiEndSegError as error:
                self.problem = str(error)
            return True
        return False

    # ------------------------------------------------------------------------------------------ times

    def remember(self, model: str, report: dict) -> None:
        """Learn from a report; anything unusable in it is passed over, and so is a short run, most of whose time went
        into preparing."""
        plan = self._plans.get(str(report.get("speed")))
        try:
            if plan is not None and int(report["steps"]) < plan.steps / 2:
                return
            key = f"{model}|{report['device']}|{report['speed']}"
            each = float(report["seconds"]) / int(report["steps"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return
        if not (math.isfinite(each) and 0 < each < 1e6):
            return
        times = self._times()
        before = times.pop(key, each)
        times[key] = (before + each) / 2
        self._settings[TIMES] = json.dumps(dict(list(times.items())[-_KEPT:]))

    def expected(self, model: str, device: str | None, speed: str) -> float | None:
        """Seconds of a whole adaptation: from earlier ones here, else as planned; None while nobody knows."""
        plan = self._plans.get(speed)
        each = self._times().get(f"{model}|{device}|{speed}")
        if plan is not None and each is not None:
            return each * plan.steps
        return None if plan is None else 60.0 * float(plan.minutes)

    def rows(self, model: str, device: str | None) -> tuple[SpeedRow, ...]:
        return tuple(self._row(speed, self.expected(model, device, speed)) for speed in SPEEDS)

    def fits(self, speed: str) -> bool | None:
        plan = self._plans.get(speed)
        return None if plan is None else bool(plan.fits)

    def sentence(self, model: str, device: str | None) -> str:
        """About the chosen speed, with the time that earlier adaptations took here."""
        plan = self._plans.get(self.chosen)
        if self.problem:
            return self.problem
        if plan is not None:
            return self._words(plan, self.expected(model, device, self.chosen))
        return _("Planning time and memory…") if self._job is not None else ""

    def _words(self, plan, seconds: float | None) -> str:
        if seconds is None or abs(seconds - 60 * plan.minutes) <= 1:
            return str(plan.sentence)
        from ..operations.adapt_plan import plan_sentence       # brings numpy: a face opens before it is needed

        return plan_sentence(plan, seconds / 60)

    def obstacle(self) -> str:
        """Why the chosen speed cannot be run, and which one can."""
        if self.fits(self.chosen) is not False:
            return ""
        other = next((speed for speed in SPEEDS if self.fits(speed)), None)
        sentence = str(self._plans[self.chosen].sentence)
        if other is not None:
            return _("{title} does not fit into the memory here; choose {other}. {sentence}").format(
                title=_title(self.chosen), other=_title(other), sentence=sentence)
        return _("There is not enough memory to adapt to this volume; close other programs, or crop the volume around "
                 "what is taught. {sentence}").format(sentence=sentence)

    def _row(self, speed: str, seconds: float | None) -> SpeedRow:
        plan = self._plans.get(speed)
        if plan is None:
            what = _("The encoder stays as it is; the rest learns.") if speed == "quick" else _("Everything learns.")
            return SpeedRow(speed, _title(speed), None, "", what, None)
        need = plan.bytes_device or plan.bytes_host
        return SpeedRow(speed, _title(speed), seconds / 60 if seconds is not None else None, wording.megabytes(need),
                        self._words(plan, seconds), bool(plan.fits))

    def _times(self) -> dict[str, float]:
        try:
            stored = json.loads(str(self._settings.get(TIMES) or "{}"))
        except ValueError:
            return {}
        if not isinstance(stored, dict):
            return {}
        return {key: float(value) for key, value in stored.items()
                if isinstance(value, (int, float)) and math.isfinite(value) and 0 < value < 1e6}


def _title(speed: str) -> str:
    return _("Quick") if speed == "quick" else _("Full")
