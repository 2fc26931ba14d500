"""Installing what HiEndSeg needs into Slicer's Python: PyTorch by the PyTorch extension, the rest by Slicer's pip.

Only what a person asked for on the set-up page is installed, from the package index or, without a network, from a folder
of wheels. The page looks at versions by `importlib.metadata`; this file never imports a package to see whether it works.
"""

from __future__ import annotations

import importlib
import logging
import os
import sysconfig
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import Cancelled, HiEndSegError
from ..presenter.wording import translator
from .wheels import check_wheels

_ = translator(__name__)

REQUESTER = "HiEndSeg"
TORCH_EXTENSION = "PyTorch"
TORCH_VERSION = ">=2.4"
#: From 2.13 on PyTorch brings licence files with names this long, counted from site-packages, and Windows stops at 259
#: characters in all: pip then fails halfway.
TORCH_LONG_PATHS, _LONGEST_NAME, _WINDOWS_LIMIT = "<2.13", 173, 259
#: Key in the settings: the process that installed the extension and waits for a restart.
PENDING = "setup/waits_for_restart_of"


class SetupError(HiEndSegError):
    """A package that could not be installed; nothing else has changed."""

    code = "setup"


@dataclass(frozen=True)
class Installed:
    """What an installation came to: one sentence, and whether Slicer must restart before the next step."""

    sentence: str
    restart_needed: bool = False


class SlicerInstaller:
    """Installs into the Slicer it runs in. Blocks while pip works, with Slicer's own progress; main thread only.

    settings: where the restart that is waited for is remembered across it. wheels: a folder of wheels to install from,
    instead of the network. ask: whether Slicer asks once more; the set-up page has asked already. The other arguments
    are for tests.
    """

    def __init__(self, settings: MutableMapping[str, Any], *, wheels: str | os.PathLike | None = None, ask: bool = False,
                 slicer: Any = None, find_module: Callable[[str], ModuleType] = importlib.import_module,
                 find_version: Callable[[str], str] = metadata.version, system: str = os.name,
                 site_packages: str | None = None):
        self._slicer = slicer if slicer is not None else find_module("slicer")
        self._settings, self._find_module, self._find_version = settings, find_module, find_version
        self._system, self._site_packages = system, site_packages or sysconfig.get_paths()["purelib"]
        self.wheels = Path(wheels) if wheels else None
        self.ask = ask

    # ------------------------------------------------------------------------------------------------- PyTorch

    def torch_requirement(self) -> str:
        """"torch" with the versions that can work here."""
        too_long = self._system == "nt" and len(self._site_packages) + 1 + _LONGEST_NAME > _WINDOWS_LIMIT
        return f"torch{TORCH_VERSION}" + (f",{TORCH_LONG_PATHS}" if too_long else "")

    @property
    def waits_for_restart(self) -> bool:
        """Whether this Slicer has installed the extension and has not been restarted since."""
        return str(self._settings.get(PENDING, "")) == str(os.getpid())

    @property
    def to_be_continued(self) -> bool:
        """Whether an earlier Slicer installed the extension and stopped there: go on with PyTorch itself."""
        return bool(self._settings.get(PENDING)) and not self.waits_for_restart and self._torch_version() is None

    def install_torch(self) -> Installed:
        """Install PyTorch in the build that fits this computer. Raises HiEndSegError.

        The first time it may end with the extension installed and a restart needed: call it again afterwards.
        """
        self._refuse_in_tests()
        if self.wheels is not None:
            return self.pip_install([self.torch_requirement()])
        utils = self._torch_extension()
        if utils is None:
            return self._install_extension()
        return self._install_by_extension(utils)

    def repair_torch(self) -> Installed:
        """Remove PyTorch and install it again. Raises HiEndSegError."""
        self._refuse_in_tests()
        self._attempt(_("PyTorch could not be removed"), lambda: self._slicer.util.pip_uninstall("torch torchvision"))
        self._forget_what_was_found()
        return self.install_torch()

    def restart(self) -> None:
        """Restart Slicer, which asks about unsaved data first."""
        self._slicer.util.restart()

    def _torch_extension(self) -> ModuleType | None:
        try:
            return self._find_module("PyTorchUtils")
        except ModuleNotFoundError as error:
            if error.name not in (None, "PyTorchUtils"):
                raise SetupError(_("The extension PyTorch is installed but cannot start, because its Python module "
                                   "{name} is missing; reinstall the extension in the Extensions Manager.").format(
                                       name=error.name)) from error
            return None

    def _install_extension(self) -> Installed:
        if self.waits_for_restart:
            return Installed(_("The extension PyTorch is installed; restart Slicer, then go on here."), True)
        get_manager = getattr(self._slicer.app, "extensionsManagerModel", None)
        if get_manager is None:
            raise SetupError(_("This Slicer has no Extensions Manager, so the extension PyTorch cannot be installed; "
                               "install from a folder of wheels instead."))
        manager = get_manager()
        if manager.isExtensionInstalled(TORCH_EXTENSION):
            raise SetupError(_("The extension PyTorch is installed but not loaded; enable it in the Extensions Manager "
                               "and restart Slicer."))
        if self.ask and not self._slicer.util.confirmOkCancelDisplay(
                _("Install the extension PyTorch now? Slicer must restart afterwards."), REQUESTER):
            raise Cancelled(_("Nothing was installed."))
        before = manager.interactive
        manager.interactive = False                     # the page has asked, and tells the outcome
        try:
            done = self._attempt(_("The extension PyTorch could not be installed"),
                                 lambda: manager.installExtensionFromServer(TORCH_EXTENSION, False))
        finally:
            manager.interactive = before
        if not done:
            raise SetupError(_("The extension PyTorch could not be installed; check the network connection and install "
                               "it in the Extensions Manager, or install from a folder of wheels."))
        self._settings[PENDING] = str(os.getpid())
        return Installed(_("The extension PyTorch is installed; restart Slicer, then go on here."), True)

    def _install_by_extension(self, utils: ModuleType) -> Installed:
        torch = self._attempt(_("PyTorch could not be installed"), lambda: utils.PyTorchUtilsLogic().installTorch(
            askConfirmation=self.ask, torchVersionRequirement=self.torch_requirement().removeprefix("torch")))
        self._forget_what_was_found()
        version = self._torch_version()
        if version is None:
            if torch is None and self.ask:
                raise Cancelled(_("PyTorch was not installed."))
            raise SetupError(_("The extension PyTorch ended without installing PyTorch; Slicer's Python console says "
                               "why."))
        self._settings.pop(PENDING, None)
        return Installed(_("PyTorch {version} is installed.").format(version=version))

    def _torch_version(self) -> str | None:
        try:
            return self._find_version("torch")
        except metadata.PackageNotFoundError:
            return None

    # -------------------------------------------------------------------------------------------- other packages

    def pip_install(self, requirements: Sequence[str], *, again: bool = False) -> Installed:
        """Install packages, each "name>=version". Raises HiEndSegError.

        again: reinstall them although they seem to be there (Repair); what they need in turn stays as it is.
        """
        self._refuse_in_tests()
        requirements = list(requirements)
        packaging = self._slicer_packaging()
        names = ", ".join(requirements)
        if self.wheels is not None:
            check_wheels(self.wheels, requirements)
            arguments = ["--no-index", "--find-links", str(self.wheels), "--only-binary", ":all:", *requirements]
        else:
            arguments = requirements
        if again:
            arguments = ["--force-reinstall", "--no-deps", *arguments]
        what = _("{packages} could not be installed").format(packages=names)
        if packaging is not None and arguments is requirements:       # it checks, shows progress, offers a restart
            self._attempt(what, lambda: packaging.pip_ensure(arguments, requester=REQUESTER, prompt_install=self.ask))
        else:
            if self.ask and not self._slicer.util.confirmOkCancelDisplay(
                    _("Install {packages} into Slicer's Python?").format(packages=names), REQUESTER):
                raise Cancelled(_("Nothing was installed."))
            if packaging is not None:
                self._attempt(what, lambda: packaging.pip_install(arguments, requester=REQUESTER))
            else:                                       # 5.10
                with self._slicer.util.WaitCursor():
                    self._attempt(what, lambda: self._slicer.util.pip_install(arguments))
        self._forget_what_was_found()
        self._check(requirements)
        return Installed(_("Installed: {packages}.").format(packages=names))

    def _check(self, requirements: Sequence[str]) -> None:
        """Raise SetupError where pip ended well and a package is not there, as after a question that was answered No."""
        from packaging.requirements import Requirement  # Slicer has it

        for requirement in map(Requirement, requirements):
            try:
                there = requirement.specifier.contains(self._find_version(requirement.name), prereleases=True)
            except metadata.PackageNotFoundError:
                there = False
            if not there:
                raise SetupError(_("pip ended without installing {requirement}; Slicer's Python console says why.").format(
                    requirement=requirement))

    def _slicer_packaging(self) -> ModuleType | None:
        """`slicer.packaging`, new in 5.12."""
        try:
            return self._find_module("slicer.packaging")
        except ModuleNotFoundError:
            return None

    # ---------------------------------------------------------------------------------------------------- helpers

    def _refuse_in_tests(self) -> None:
        if self._slicer.app.testingEnabled():           # as slicer.packaging does: tests must not change Slicer
            raise SetupError(_("Slicer runs in testing mode, in which nothing is installed; start it without --testing."))

    def _attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """The action's value; whatever it raises becomes one sentence that begins with `what`."""
        try:
            return action()
        except HiEndSegError:
            raise
        except Exception as error:                      # noqa: BLE001 - pip, Slicer and the extension raise anything
            if isinstance(error, RuntimeError) and "declined" in str(error):
                raise Cancelled(_("Nothing was installed.")) from error
            logging.getLogger(__name__).exception("An installation failed")
            raise SetupError(_("{what}; {advice}").format(what=what, advice=_advice(error))) from error

    @staticmethod
    def _forget_what_was_found() -> None:
        importlib.invalidate_caches()                   # else this process does not see what pip has just changed


#: What is written in an error -> what to do. Slicer's pip keeps its own messages in the Python console.
_ADVICE: tuple[tuple[tuple[str, ...], Callable[[], str]], ...] = (
    (("no space left", "errno 28", "not enough space"),
     lambda: _("the disk is full, PyTorch needs up to 8 GB; make room and try again.")),
    (("access is denied", "winerror 5", "winerror 32", "being used by another process"),
     lambda: _("some of its files are in use; restart Slicer and press Repair before anything else.")),
    (("permission denied", "errno 13", "read-only file system", "errno 30"),
     lambda: _("Slicer's own folder cannot be written to; install Slicer into a folder of yours.")),
    (("certificate",),
     lambda: _("the network replaces certificates, which Slicer's Python does not accept; install from a folder of "
               "wheels.")),
)


def _advice(error: BaseException) -> str:
    output = getattr(error, "output", None)             # Slicer puts a stream there, already read
    text = f"{error} {output if isinstance(output, str) else ''}".lower()
    for signs, sentence in _ADVICE:
        if any(sign in text for sign in signs):
            return sentence()
    return _("check the network connection and try again, or install from a folder of wheels; Slicer's Python console "
             "says more.")
