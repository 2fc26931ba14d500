"""`SetupPresenter`: first use, in one page: what is missing, what it is for and how big, install, check, repair.

Nothing is downloaded before `install()`. The face brings an `Installer`, which alone knows how packages get into this
program. Looking imports nothing but installation records; PyTorch is tried by the engine, in a process of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import HiEndSegError
from . import wording
from .packages import PackageRow, installed_version, look_at_packages, requirement_lines, total
from .report import bug_report
from .signals import Signal

if TYPE_CHECKING:
    from ..engine.interface import Engine, Job
    from ..models.registry import Registry

_ = wording.translator(__name__)

TORCH = "torch>=2.4"
#: Key in the settings: an installation waits for a restart.
PENDING = "setup_pending"


class RestartNeeded(Exception):
    """Raised by an installer that can go on only after the program was started again; its text says so to a person."""


class Installer(Protocol):
    """How packages get in. Each method blocks until it is done, and raises any exception with a text when it failed.

    repair: install again even what seems to be there. RestartNeeded: the rest follows after a restart.
    """

    def install_torch(self, requirement: str, *, repair: bool = False) -> None: ...

    def pip_install(self, requirements: Sequence[str], *, repair: bool = False) -> None: ...


@dataclass(frozen=True)
class StepRow:
    """state: "waiting", "running", "done" or "failed"."""

    text: str
    state: str


@dataclass(frozen=True)
class SetupState:
    """phase: "needed" something is missing · "complete" nothing is · "installing" · "checking" · "failed" · "restart".

    headline: one sentence. detail: what is fetched and how big, or why something failed. sentences: what the check of
    each device found. offline: how to install without a network.
    """

    phase: str = "complete"
    headline: str = ""
    detail: str = ""
    packages: tuple[PackageRow, ...] = ()
    steps: tuple[StepRow, ...] = ()
    fraction: float = 0.0
    sentences: tuple[str, ...] = ()
    button_text: str = ""
    button_enabled: bool = True
    offline: str = ""

    @property
    def busy(self) -> bool:
        return self.phase in ("installing", "checking")


class SetupPresenter:
    """engine: asked to try the devices. renew_engine: called after an installation; closes the old engine, gives a new.

    requirements: the text of the requirements file. python: what the offline recipe calls the interpreter.
    done: emitted when a check has passed (connect what has to look again). Call `tick()` from the face's timer: each
    tick does one step at most, so that the page is painted in between.
    """

    def __init__(self, *, installer: Installer, requirements: str, engine: Engine, registry: Registry | None = None,
                 settings: MutableMapping[str, Any] | None = None, renew_engine: Callable[[], Engine] | None = None,
                 host: str = "Python", python: str = "python", torch: str = TORCH,
                 version_of: Callable[[str], str | None] = installed_version):
        self._installer, self._engine, self._registry = installer, engine, registry
        self._settings = {} if settings is None else settings
        self._renew, self._host, self._python, self._torch = renew_engine, host, python, torch
        self._lines, self._version_of = requirement_lines(requirements), version_of
        self._queue: list[tuple[str, Callable[[], None]]] = []
        self._next = 0
        self._job: Job | None = None
        self._report: dict | None = None
        self._torch_suspect = False             # the last check found no device that works
        self._failure = ""
        self.changed, self.done = Signal(), Signal()
        self.state = SetupState()
        self.look()

    # ------------------------------------------------------------------------------------------ looking

    def look(self) -> None:
        """What is installed now. Milliseconds; imports no package and asks nobody."""
        if self.state.busy:
            return
        try:
            rows = tuple(look_at_packages([self._torch, *self._lines], version_of=self._version_of))
        except HiEndSegError as error:
            self._show(phase="failed", headline=_("HiEndSeg is damaged."), detail=str(error), packages=(),
                       button_text=_("Repair"), button_enabled=False)
            return
        self._show(offline=self._offline(rows))
        missing = [row for row in rows if row.state != "ok"]
        if missing:
            again = bool(self._settings.get(PENDING))
            self._show(phase="needed", packages=rows, steps=(), fraction=0.0, button_text=_("Install"),
                       button_enabled=True, detail=self._what(missing), headline=_(
                           "The installation that waited for a restart can go on now.") if again else _(
                           "Before the first use, HiEndSeg needs {names}.").format(
                           names=wording.listing(row.name for row in missing)))
        else:
            self._settings[PENDING] = ""
            self._show(phase="complete", packages=rows, steps=(), fraction=0.0, button_text=_("Repair"),
                       button_enabled=True, detail="", headline=_("Everything that HiEndSeg needs is installed."))

    @property
    def needed(self) -> bool:
        """Whether the face should show this page before anything else."""
        return any(row.state != "ok" for row in self.state.packages)

    def _what(self, missing: Sequence[PackageRow]) -> str:
        parts = [_("{name} ({why})").format(name=row.name, why=row.why) if row.why else row.name for row in missing]
        return _("To install: {packages}. About {download} to download and {disk} on the disk{spread}. Nothing is "
                 "fetched before you press Install; your images never leave this computer.").format(
            packages=", ".join(parts), download=_between(total(list(missing), "download")),
            disk=_between(total(list(missing), "disk")),
            spread=_(" (the larger with an NVIDIA graphics card)")
            if any(row.name == "torch" for row in missing) else "")

    def _offline(self, rows: Sequence[PackageRow]) -> str:
        return _("Without a network: on a computer with the same system and the same version of this program run\n"
                 "    {python} -m pip download -d wheelhouse {packages}\n"
                 "copy the folder wheelhouse to this computer, and run here\n"
                 "    {python} -m pip install --no-index --find-links wheelhouse {packages}\n"
                 "Then start the program again.").format(
            python=self._python, packages=" ".join(f'"{row.requirement}"' for row in rows))

    # ------------------------------------------------------------------------------------------ doing

    def press(self) -> None:
        """The page's button: Install what is missing, or Repair."""
        if self.needed:
            self.install()
        else:
            self.repair()

    def install(self) -> None:
        """Install what is missing, then try the devices."""
        rows = {row.name: row for row in self.state.packages}
        wanted = [row.requirement for row in rows.values() if row.state != "ok" and row.name != "torch"]
        steps = []
        if "torch" in rows and rows["torch"].state != "ok":
            steps.append((_("Install PyTorch"), lambda: self._installer.install_torch(self._torch)))
        if wanted:
            steps.append((_("Install {names}").format(names=wording.listing(wanted)),
                          lambda: self._installer.pip_install(wanted)))
        self._begin(steps)

    def repair(self) -> None:
        """Install the small packages again, PyTorch where no device works, and check the default model."""
        wanted = [row.requirement for row in self.state.packages if row.name != "torch"]
        steps = [(_("Install the packages again"), lambda: self._installer.pip_install(wanted, repair=True))]
        if self._torch_suspect:
            steps.insert(0, (_("Install PyTorch again"),
                             lambda: self._installer.install_torch(self._torch, repair=True)))
        if self._registry is not None:
            steps.append((_("Check the default model"), self._registry.verify))
        self._begin(steps)

    def check(self) -> None:
        """Only try the devices, each with a tiny convolution."""
        self._begin([])

    def tick(self) -> None:
        """Do the next step, or take in the engine's answer."""
        if self.state.phase == "installing":
            self._step()
        elif self.state.phase == "checking" and self._job is not None:
            self._job.poll()
            if self._job.done:
                job, self._job = self._job, None
                self._checked(job)

    def report(self, *, error: str = "", log: Sequence[str] = (), secrets: Iterable[str] = ()) -> str:
        """The text for a bug report, see `report.bug_report`; e.g. `report(**segment_presenter.report_facts())`."""
        cards, problems = [], []
        try:
            if self._registry is not None:
                cards, problems = self._registry.list(), [str(problem) for problem in self._registry.problems]
        except (HiEndSegError, ModuleNotFoundError) as trouble:
            problems = [str(trouble)]
        return bug_report(host=self._host, packages=self.state.packages, doctor=self._report, cards=cards,
                          problems=problems, error=error or self._failure, log=log, secrets=secrets)

    def set_engine(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        self.changed.disconnect_all()
        self.done.disconnect_all()
        self._queue, self._job = [], None

    # ------------------------------------------------------------------------------------------ inside

    def _begin(self, steps: list[tuple[str, Callable[[], Any]]]) -> None:
        if self.state.busy:
            return
        self._failure = ""
        self._queue = [*steps, (_("Try the devices"), lambda: None)]
        self._next = 0
        self._show(phase="installing", sentences=(), headline=_("Setting up HiEndSeg"), detail=_(
            "This takes a few minutes; you can go on working where the program lets you."), button_enabled=False,
            **self._progress())

    def _step(self) -> None:
        if self._next == len(self._queue) - 1:
            self._ask_engine()
            return
        _text, act = self._queue[self._next]
        try:
            act()
        except RestartNeeded as why:
            self._settings[PENDING] = "1"
            self._show(phase="restart", headline=_("Start the program again to go on."), detail=str(why),
                       button_enabled=False)
            return
        except Exception as error:              # noqa: BLE001 - installers raise all sorts of things
            self._fail(str(error) or type(error).__name__)
            return
        self._next += 1
        self._show(**self._progress())

    def _ask_engine(self) -> None:
        importlib.invalidate_caches()
        try:
            rows = tuple(look_at_packages([self._torch, *self._lines], version_of=self._version_of))
            missing = [row for row in rows if row.state != "ok"]
            if missing:
                self._show(packages=rows)
                self._fail(_("{names} could not be installed, or in too old a version; look into the log of the "
                             "installation, or install without a network as described below.").format(
                    names=wording.listing(row.requirement for row in missing)))
                return
            if self._renew is not None and len(self._queue) > 1:
                self._engine = self._renew()    # a worker from before holds what was there before
            self._job = self._engine.submit_doctor()
        except HiEndSegError as error:
            self._fail(str(error))
            return
        self._settings[PENDING] = ""
        self._show(phase="checking", packages=rows, headline=_("Trying the devices"), detail="")

    def _checked(self, job: Job) -> None:
        self._torch_suspect = True
        if job.error is not None:
            self._fail(str(job.error))
            return
        self._report = job.result()
        devices = list(self._report.get("devices") or [])
        sentences = tuple(device["sentence"] for device in devices)
        self._torch_suspect = not any(device.get("works") for device in devices)
        if self._torch_suspect:
            self._show(sentences=sentences)
            self._fail(" ".join([*(self._report.get("problems") or []),
                                 _("No device works; choose Repair, and if it stays so, copy the report.")]))
            return
        self._next = len(self._queue)
        self._show(phase="complete", headline=_("HiEndSeg is ready."), detail=" ".join(sentences), sentences=sentences,
                   button_text=_("Repair"), button_enabled=True, **self._progress())
        self.done.emit()

    def _fail(self, why: str) -> None:
        self._failure = why
        steps = tuple(replace(step, state="failed") if step.state == "running" else step for step in self.state.steps)
        self._show(phase="failed", headline=_("Setting up HiEndSeg did not work."), detail=why, steps=steps,
                   button_text=_("Install") if self.needed else _("Repair"), button_enabled=True)

    def _progress(self) -> dict:
        steps = tuple(StepRow(text, "done" if n < self._next else "running" if n == self._next else "waiting")
                      for n, (text, _act) in enumerate(self._queue))
        return {"steps": steps, "fraction": self._next / len(self._queue)}

    def _show(self, **changes: Any) -> None:
        state = replace(self.state, **changes)
        if state != self.state:
            self.state = state
            self.changed.emit()


def _between(pair: tuple[float, float]) -> str:
    low, high = (wording.megabytes(value * 1e6) for value in pair)
    return low if low == high else _("{low} to {high}").format(low=low, high=high)
