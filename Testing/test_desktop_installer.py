"""`SlicerInstaller` on stand-ins for Slicer 5.10 and 5.12, its Extensions Manager and PyTorchUtils; once with real pip.

The stand-ins have the names and arguments of Slicer's functions. What they cannot show is Slicer's own dialogs, and
whether a build of PyTorch runs.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from HiEndSegLib.desktop import installer as installer_file
from HiEndSegLib.desktop.installer import SetupError, SlicerInstaller
from HiEndSegLib.errors import HiEndSegError, InputError
from HiEndSegLib.presenter.setup import RestartNeeded, SetupPresenter

LINUX, WINDOWS = "/opt/Slicer/lib/Python/lib/python3.12/site-packages", \
    r"C:\Users\somebody.else\AppData\Local\slicer.org\3D Slicer 5.12.2\lib\Python\Lib\site-packages"


class Machine:
    """A computer with Slicer: what is installed, what was called. new: 5.12 (with `slicer.packaging`), else 5.10."""

    def __init__(self, new=True, extension=False, testing=False):
        self.versions, self.calls, self.fails, self.server_works = {}, [], None, True
        self.extension_installed = self.extension_loaded = extension
        self.manager = SimpleNamespace(interactive=True, isExtensionInstalled=lambda name: self.extension_installed,
                                       installExtensionFromServer=self.install_extension)
        self.slicer = SimpleNamespace(
            app=SimpleNamespace(testingEnabled=lambda: testing, extensionsManagerModel=lambda: self.manager),
            util=SimpleNamespace(pip_install=self.pip_install, pip_uninstall=self.pip_uninstall,
                                 WaitCursor=nullcontext))
        self.modules = {"slicer": self.slicer}
        if new:
            self.modules["slicer.packaging"] = SimpleNamespace(
                pip_ensure=self.pip_ensure, pip_install=lambda r, requester=None: self.pip_install(r))

    def installer(self, system="posix", site=LINUX, **options):
        return SlicerInstaller(find_module=self.find, system=system, site_packages=site, **options)

    def find(self, name):
        if name == "PyTorchUtils" and self.extension_loaded:
            return SimpleNamespace(PyTorchUtilsLogic=lambda: SimpleNamespace(installTorch=self.install_torch))
        if name not in self.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return self.modules[name]

    def _take(self, *call):
        self.calls.append(call)
        if self.fails is not None:
            raise self.fails

    def install_extension(self, name, restart=True, update=False):
        self._take("extension", name, restart, self.manager.interactive)
        self.extension_installed |= self.server_works
        return self.server_works

    def install_torch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None):
        self._take("torch", askConfirmation, torchVersionRequirement)
        self.versions["torch"] = "2.12.1+cu130"
        return object()

    def pip_install(self, requirements):
        self._take("pip", requirements)
        for name, _, version in (text.partition(">=") for text in requirements if ">=" in text):
            self.versions[name] = version.split(",")[0]

    def pip_ensure(self, requirements, requester=None, prompt_install=True):
        self._take("ensure", requester, prompt_install)
        self.pip_install(requirements)

    def pip_uninstall(self, names):
        self._take("uninstall", names)
        self.versions.clear()


# -------------------------------------------------------------------------------------------------------- PyTorch

def test_torch_from_nothing_to_installed_across_a_restart():
    machine = Machine()
    installer = machine.installer()
    for _press in range(2):                                              # pressed again: nothing twice
        with pytest.raises(RestartNeeded, match="restart Slicer, then go on here"):
            installer.install_torch("torch>=2.4")
    assert machine.calls == [("extension", "PyTorch", False, False)]      # no restart behind the user's back, no pop-up
    assert machine.manager.interactive is True                            # given back
    machine.extension_loaded = True                                       # another Slicer, later
    machine.installer().install_torch("torch>=2.4")
    assert machine.calls[1:] == [("torch", False, ">=2.4")]


@pytest.mark.parametrize("system, site, wanted", [
    ("posix", LINUX, "torch>=2.4"), ("nt", r"C:\Slicer\lib\Python\Lib\site-packages", "torch>=2.4"),
    ("nt", WINDOWS, "torch>=2.4,<2.13"), ("posix", "/" + "x" * 100, "torch>=2.4")])
def test_torch_version_that_fits_into_windows_paths(system, site, wanted):
    machine = Machine(extension=True)
    installer = machine.installer(system=system, site=site)
    assert installer.fitting("torch>=2.4") == wanted
    installer.install_torch("torch>=2.4")
    assert machine.calls == [("torch", False, wanted.removeprefix("torch"))]


def test_torch_names_stay_as_long_as_we_think():
    """The limit comes from the licence files that PyTorch 2.13 brings; where it is installed, look."""
    pytest.importorskip("torch")
    names = [path.as_posix() for path in metadata.files("torch") or ()]
    assert 100 < max(map(len, names)) <= installer_file._LONGEST_NAME


def test_torch_refusals_are_sentences():
    machine = Machine()
    machine.server_works = False
    with pytest.raises(SetupError, match="Extensions Manager, or install from a folder of wheels"):
        machine.installer().install_torch("torch>=2.4")
    assert machine.manager.interactive is True

    machine = Machine()
    machine.extension_installed = True                                   # switched off, or installed by hand just now
    with pytest.raises(SetupError, match="restart Slicer, and if that does not help enable it"):
        machine.installer().install_torch("torch>=2.4")

    machine = Machine()
    del machine.slicer.app.extensionsManagerModel                        # a Slicer built without
    with pytest.raises(SetupError, match="has no Extensions Manager"):
        machine.installer().install_torch("torch>=2.4")
    assert machine.calls == []


def test_broken_extension_names_what_is_missing():
    machine = Machine()

    def find(name):
        raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")
    with pytest.raises(SetupError, match="module pkg_resources is missing"):
        SlicerInstaller(slicer=machine.slicer, find_module=find).install_torch("torch>=2.4")


def test_repair_removes_only_what_can_be_put_back():
    machine = Machine(extension=True)
    machine.versions["torch"] = "2.3.0"
    machine.installer().install_torch("torch>=2.4", repair=True)
    assert machine.calls == [("uninstall", "torch torchvision"), ("torch", False, ">=2.4")]
    assert machine.versions == {"torch": "2.12.1+cu130"}
    machine = Machine(extension=False)                                   # PyTorch came some other way
    with pytest.raises(RestartNeeded):
        machine.installer().install_torch("torch>=2.4", repair=True)
    assert [call[0] for call in machine.calls] == ["extension"]


# --------------------------------------------------------------------------------------------- the other packages

def test_pip_on_both_slicers():
    packages = ["nibabel>=5.2", "psutil>=5.9"]
    machine = Machine(new=True)
    machine.installer().pip_install(packages)
    assert machine.calls == [("ensure", "HiEndSeg", False), ("pip", packages)]
    machine = Machine(new=False)
    machine.installer().pip_install(packages)
    assert machine.calls == [("pip", packages)]


@pytest.mark.parametrize("new", [True, False])
def test_repair_reinstalls_only_what_is_named(new):
    machine = Machine(new=new)
    machine.installer().pip_install(["nibabel>=5.2"], repair=True)
    assert machine.calls == [("pip", ["--force-reinstall", "--no-deps", "nibabel>=5.2"])]


@pytest.mark.parametrize("error, advice", [
    (subprocess.CalledProcessError(1, "pip install"), "check the network connection and try again"),
    (OSError(28, "No space left on device"), "the disk is full"),
    (PermissionError(13, "Permission denied"), "install Slicer into a folder of yours"),
    (OSError("[WinError 5] Access is denied: 'c10.dll'"), "restart Slicer and press Repair"),
    (subprocess.CalledProcessError(1, "pip", output="SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'"),
     "the network replaces certificates"),
    (subprocess.CalledProcessError(2, "pip", output=object()), "Python console says more"),
    (ValueError("anything"), "check the network")])
@pytest.mark.parametrize("new", [True, False])
def test_every_failure_is_one_sentence_with_what_to_do(new, error, advice):
    for action in (lambda i: i.pip_install(["nibabel>=5.2"]), lambda i: i.pip_install(["nibabel>=5.2"], repair=True),
                   lambda i: i.install_torch("torch>=2.4"), lambda i: i.install_torch("torch>=2.4", repair=True)):
        for extension in (True, False):
            machine = Machine(new=new, extension=extension)
            machine.fails = error
            with pytest.raises(SetupError) as caught:
                action(machine.installer())
            sentence = str(caught.value)
            assert advice in sentence and sentence.endswith(".") and "\n" not in sentence
            assert "could not be" in sentence and caught.value.__cause__ is error and len(machine.calls) == 1


def test_nothing_is_installed_in_testing_mode():
    machine = Machine(testing=True)
    installer = machine.installer()
    for action in (lambda: installer.install_torch("torch>=2.4"), lambda: installer.pip_install(["nibabel>=5.2"])):
        with pytest.raises(SetupError, match="testing mode"):
            action()
    assert machine.calls == []


def test_the_page_of_first_use_drives_it_across_a_restart():
    """The real set-up presenter on this installer: two Slicers, one press each, then the devices are tried."""
    machine, settings = Machine(), {}
    wanted = (Path(__file__).parents[1] / "HiEndSeg" / "Resources" / "requirements.txt").read_text(encoding="utf-8")

    class Job:
        done, error = True, None

        def poll(self):
            pass

        def result(self):
            return {"devices": [{"kind": "cpu", "works": True, "sentence": "The processor works."}]}

    def page():
        return SetupPresenter(installer=machine.installer(), requirements=wanted, settings=settings,
                              engine=SimpleNamespace(submit_doctor=Job), version_of=machine.versions.get)
    first = page()
    assert first.needed and "torch" in first.state.headline
    first.press()
    for _tick in range(10):
        first.tick()
    assert first.state.phase == "restart" and "restart Slicer" in first.state.detail
    machine.extension_loaded = True
    second = page()
    assert second.needed and "waited for a restart" in second.state.headline
    second.press()
    for _tick in range(10):
        second.tick()
    assert (second.state.phase, second.state.detail) == ("complete", "The processor works.")
    assert set(machine.versions) == {"torch", "nibabel", "safetensors", "jsonschema", "platformdirs", "psutil"}


# ------------------------------------------------------------------------------------------- a folder of wheels

def wheel(folder: Path, name: str, version: str, tags: str = "py3-none-any") -> Path:
    """A wheel of one empty module."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-{tags}.whl"
    files = {f"{name}.py": "", f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
             f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tags}\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return path


def test_wheels_are_looked_at_before_pip(tmp_path):
    machine = Machine()
    installer = machine.installer(wheels=tmp_path / "none")
    for sentence in ("does not exist", "There are no wheels"):
        with pytest.raises(InputError, match=sentence):
            installer.pip_install(["demo>=1.0"])
        installer.wheels = str(tmp_path)                                 # as a file dialog gives it
    (tmp_path / "not a wheel.whl").touch()
    wheel(tmp_path, "demo", "0.9")
    with pytest.raises(InputError, match="has demo 0.9, but demo>=1.0 is needed"):
        installer.pip_install(["demo>=1.0"])
    wheel(tmp_path, "demo", "1.1", "cp27-cp27m-win32")
    with pytest.raises(InputError, match=r"for another system or Python; this is Python 3\.\d+ on \w+"):
        installer.pip_install(["demo>=1.0"])
    with pytest.raises(InputError, match="lacks torch>=2.4; download it as the README's offline recipe says"):
        installer.install_torch("torch>=2.4")
    assert machine.calls == [] and issubclass(InputError, HiEndSegError)


def test_wheels_go_in_without_a_network(tmp_path):
    """Real pip, told what Slicer's would be told, into a folder of its own."""
    folder, target = tmp_path / "wheels of ours", tmp_path / "site"
    folder.mkdir()
    wheel(folder, "demo", "1.2")
    wheel(folder, "torch", "2.5.0")
    machine = Machine(new=False)
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this Python has no pip")

    def pip_install(arguments):
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--isolated", "--target", str(target),
                        *arguments], check=True, env={"PATH": "", "HOME": str(tmp_path)}, timeout=120)

    machine.slicer.util.pip_install = pip_install
    installer = machine.installer(wheels=folder)
    installer.pip_install(["demo>=1.0"])
    installer.install_torch("torch>=2.4")
    installer.pip_install(["demo>=1.0"], repair=True)
    assert (target / "demo.py").exists() and (target / "torch.py").exists()
