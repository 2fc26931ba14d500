"""Installing what HiEndSeg needs into Slicer's Python: PyTorch by the PyTorch extension, the rest by Slicer's pip.

The `Installer` of the set-up page (`presenter/setup.py`), which has said what will be fetched and has been told to go
on, so nothing is asked again here. From the package index or, without a network, from a folder of wheels.
"""

from __future__ import annotations

import importlib
import logging
import os
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import HiEndSegError
from ..presenter.setup import RestartNeeded
from ..presenter.wording import translator
from .wheels import check_wheels

_ = translator(__name__)

REQUESTER = "HiEndSeg"
TORCH_EXTENSION = "PyTorch"
#: From 2.13 on PyTorch brings licence files with names this long, counted from site-packages, and Windows stops at 259
#: characters in all: pip then fails halfway.
TORCH_WITH_SHORT_NAMES, _LONGEST_NAME, _WINDOWS_LIMIT = "<2.13", 173, 259


class SetupError(HiEndSegError):
    """A package that could not be installed."""

    code = "setup"


class SlicerInstaller:
    """Installs into the Slicer it runs in. Blocks while pip works, with Slicer's own progress; main thread only.

    wheels: a folder of wheels to install from instead of the network; may be set at any time. The other arguments are
    for tests.
    """

    def __init__(self, *, wheels: str | os.PathLike | None = None, slicer: Any = None,
                 find_module: Callable[[str], ModuleType] = importlib.import_module, system: str = os.name,
                 site_packages: str | None = None):
        self._slicer = slicer if slicer is not None else find_module("slicer")
        self._find_module = find_module
        self._system, self._site_packages = system, site_packages or sysconfig.get_paths()["purelib"]
        self._extension_is_new = False
        self.wheels = wheels

    @property
    def wheels(self) -> Path | None:
        return self._wheels

    @wheels.setter
    def wheels(self, folder: str | os.PathLike | None) -> None:
        self._wheels = Path(folder) if folder else None

    def install_torch(self, requirement: str, *, repair: bool = False) -> None:
        """Install PyTorch ("torch>=2.4") in the build that fits this computer. Raises HiEndSegError.

        Raises RestartNeeded where the extension had to be installed first: call it again in the next Slicer.
        repair: remove the PyTorch that is there first.
        """
        self._refuse_in_tests()
        requirement = self.fitting(requirement)
        if self.wheels is not None:
            check_wheels(self.wheels, [requirement])
        utils = None if self.wheels is not None else self._torch_extension()
        if repair:
            self._attempt(_("PyTorch could not be removed"),
                          lambda: self._slicer.util.pip_uninstall("torch torchvision"))
        if self.wheels is not None:
            self.pip_install([requirement])
        else:
            self._attempt(_("PyTorch could not be installed"), lambda: utils.PyTorchUtilsLogic().installTorch(
                askConfirmation=False, torchVersionRequirement=requirement.removeprefix("torch")))
            importlib.invalidate_caches()

    def pip_install(self, requirements: Sequence[str], *, repair: bool = False) -> None:
        """Install packages, each "name>=version". Raises HiEndSegError.

        repair: install them again although they seem to be there; what they need in turn stays as it is.
        """
        self._refuse_in_tests()
        requirements = list(requirements)
        arguments: list[str] = []
        if self.wheels is not None:
            check_wheels(self.wheels, requirements)
            arguments += ["--no-index", "--find-links", str(self.wheels), "--only-binary", ":all:"]
        if repair:
            arguments += ["--force-reinstall", "--no-deps"]
        what = _("{packages} could not be installed").format(packages=", ".join(requirements))
        packaging = self._slicer_packaging()
        if packaging is None:                           # 5.10
            with self._slicer.util.WaitCursor():
                self._attempt(what, lambda: self._slicer.util.pip_install([*arguments, *requirements]))
        elif arguments:
            self._attempt(what, lambda: packaging.pip_install([*arguments, *requirements], requester=REQUESTER))
        else:                                           # also says when something that is loaded was replaced
            self._attempt(what, lambda: packaging.pip_ensure(requirements, requester=REQUESTER, prompt_install=False))
        importlib.invalidate_caches()                   # else this process does not see what pip has just changed

    def fitting(self, requirement: str) -> str:
        """The requirement for PyTorch with the versions that can be installed here."""
        too_long = self._system == "nt" and len(self._site_packages) + 1 + _LONGEST_NAME > _WINDOWS_LIMIT
        return f"{requirement},{TORCH_WITH_SHORT_NAMES}" if too_long else requirement

    # -------------------------------------------------------------------------------------------------- the extension

    def _torch_extension(self) -> ModuleType:
        """The extension's module. Raises RestartNeeded after installing the extension, or SetupError."""
        try:
            return self._find_module("PyTorchUtils")
        except ModuleNotFoundError as error:
            if error.name not in (None, "PyTorchUtils"):
                raise SetupError(_("The extension PyTorch cannot start, because its Python module {name} is missing; "
                                   "reinstall the extension in the Extensions Manager.").format(name=error.name)
                                 ) from error
        if not self._extension_is_new:
            self._install_extension()
        self._extension_is_new = True
        raise RestartNeeded(_("The extension PyTorch is installed; restart Slicer, then go on here."))

    def _install_extension(self) -> None:
        get_manager = getattr(self._slicer.app, "extensionsManagerModel", None)
        if get_manager is None:
            raise SetupError(_("This Slicer has no Extensions Manager, so the extension PyTorch cannot be installed; "
                               "install from a folder of wheels instead."))
        manager = get_manager()
        if manager.isExtensionInstalled(TORCH_EXTENSION):
            raise SetupError(_("The extension PyTorch is installed but not loaded; restart Slicer, and if that does "
                               "not help enable it in the Extensions Manager."))
        before = manager.interactive
        manager.interactive = False                     # no pop-ups: the page tells the outcome
        try:
            done = self._attempt(_("The extension PyTorch could not be installed"),
                                 lambda: manager.installExtensionFromServer(TORCH_EXTENSION, False))
        finally:
            manager.interactive = before
        if not done:
            raise SetupError(_("The extension PyTorch could not be installed; check the network connection and install "
                               "it in the Extensions Manager, or install from a folder of wheels."))

    # ---------------------------------------------------------------------------------------------------- helpers

    def _slicer_packaging(self) -> ModuleType | None:
        """`slicer.packaging`, new in 5.12."""
        try:
            return self._find_module("slicer.packaging")
        except ModuleNotFoundError:
            return None

    def _refuse_in_tests(self) -> None:
        if self._slicer.app.testingEnabled():           # as slicer.packaging does: tests must not change Slicer
            raise SetupError(_("Slicer runs in testing mode, in which nothing is installed; start it without "
                               "--testing."))

    @staticmethod
    def _attempt(what: str, action: Callable[[], Any]) -> Any:
        """The action's value; whatever it raises becomes one sentence that begins with `what`."""
        try:
            return action()
        except HiEndSegError:
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("An installation failed")
            raise SetupError(_("{what}; {advice}").format(what=what, advice=_advice(error))) from error


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
