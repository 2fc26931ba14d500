"""First use: what is missing, what it costs, install, check, repair; an installer that does what the test says."""

from __future__ import annotations

import pytest
from presenter_helpers import DOCTOR, FakeEngine, FakeRegistry, card

from HiEndSegLib.errors import EngineError, InputError
from HiEndSegLib.models.registry import ModelProblem
from HiEndSegLib.presenter.packages import look_at_packages, package_sizes, requirement_lines
from HiEndSegLib.presenter.report import bug_report
from HiEndSegLib.presenter.setup import PENDING, RestartNeeded, SetupPresenter

REQUIREMENTS = """# What is needed
nibabel>=5.2   # orientation
safetensors>=0.4

--only-binary :all:
winreg-only>=1; sys_platform == "nowhere"
"""


class World:
    """What is installed, and an installer that changes it."""

    def __init__(self, **versions):
        self.versions, self.calls, self.trouble, self.works = versions, [], {}, True

    def version_of(self, name):
        return self.versions.get(name)

    def install_torch(self, requirement, *, repair=False):
        self.calls.append(("torch", requirement, repair))
        self._do("torch", {"torch": "2.13.0"})

    def pip_install(self, requirements, *, repair=False):
        self.calls.append(("pip", list(requirements), repair))
        self._do("pip", {line.split(">")[0]: "99.0" for line in requirements})

    def _do(self, what, versions):
        if what in self.trouble:
            raise self.trouble[what]
        if self.works:
            self.versions.update(versions)


def page(world, *, engine=None, settings=None, **how):
    return SetupPresenter(installer=world, requirements=REQUIREMENTS, engine=engine or FakeEngine(),
                          registry=FakeRegistry(card()), settings=settings, version_of=world.version_of,
                          host="3D Slicer 5.10.0", python="PythonSlicer", **how)


def drive(presenter, turns=12):
    """Tick until nothing goes on; the phases that were seen."""
    phases = []
    for _ in range(turns):
        phases.append(presenter.state.phase)
        presenter.tick()
    return list(dict.fromkeys(phases))


def test_the_page_says_what_why_and_how_big_before_anything_is_fetched():
    world = World(safetensors="0.3")
    presenter = page(world)
    state = presenter.state
    assert state.phase == "needed" and presenter.needed and world.calls == []
    assert state.headline == "Before the first use, HiEndSeg needs torch, nibabel and safetensors."
    assert [(row.name, row.state, row.installed) for row in state.packages] == [
        ("torch", "missing", None), ("nibabel", "missing", None), ("safetensors", "old", "0.3")]
    assert "torch (computes the networks)" in state.detail and "before you press Install" in state.detail
    assert "About 184 MB to 3.0 GB to download and 761 MB to 5.0 GB on the disk" in state.detail
    assert state.button_text == "Install" and state.button_enabled
    assert 'PythonSlicer -m pip download -d wheelhouse "torch>=2.4" "nibabel>=5.2"' in state.offline
    assert "winreg" not in state.offline
    assert "--no-index --find-links wheelhouse" in state.offline


def test_nothing_to_do():
    presenter = page(World(torch="2.13.0+cpu", nibabel="5.4.2", safetensors="0.8.0"))
    assert presenter.state.phase == "complete" and not presenter.needed and presenter.state.button_text == "Repair"


def test_installing_goes_step_by_step_and_ends_with_a_convolution():
    world, engines, done = World(), [FakeEngine()], []

    def renew():
        engines[-1].close()
        engines.append(FakeEngine())
        return engines[-1]

    presenter = page(world, engine=engines[0], renew_engine=renew)
    presenter.done.connect(lambda: done.append(1))
    presenter.press()
    assert presenter.state.phase == "installing" and world.calls == [], "first it is shown, then it is done"
    assert [step.state for step in presenter.state.steps] == ["running", "waiting", "waiting"]
    presenter.tick()
    assert world.calls == [("torch", "torch>=2.4", False)] and 0.3 < presenter.state.fraction < 0.4
    assert [step.state for step in presenter.state.steps] == ["done", "running", "waiting"]
    presenter.tick()
    assert world.calls[1:] == [("pip", ["nibabel>=5.2", "safetensors>=0.4"], False)]
    assert drive(presenter) == ["installing", "checking", "complete"] and done == [1]
    assert len(engines) == 2 and engines[0].closed and engines[1].count("doctor") == 1
    assert presenter.state.headline == "HiEndSeg is ready." and presenter.state.fraction == 1.0
    assert presenter.state.sentences == ("A card works, 8 GiB.", "The CPU works, 2 threads.")
    assert not presenter.needed and {step.state for step in presenter.state.steps} == {"done"}


def test_only_what_is_missing_is_installed():
    world = World(torch="2.13.0", nibabel="5.4.2")
    presenter = page(world)
    presenter.install()
    drive(presenter)
    assert world.calls == [("pip", ["safetensors>=0.4"], False)] and presenter.state.phase == "complete"


@pytest.mark.parametrize("what", ["torch", "pip"])
def test_an_installation_that_fails_says_why_and_can_be_tried_again(what):
    world = World()
    world.trouble[what] = RuntimeError("pip ended with 1: no network")
    presenter = page(world)
    presenter.press()
    drive(presenter)
    assert presenter.state.phase == "failed" and presenter.state.detail == "pip ended with 1: no network"
    assert "failed" in [step.state for step in presenter.state.steps]
    assert presenter.state.button_text == "Install" and presenter.state.button_enabled
    world.trouble.clear()
    presenter.look()
    presenter.press()
    drive(presenter)
    assert presenter.state.phase == "complete"


def test_an_installer_that_does_nothing_is_noticed():
    """In Slicer's testing mode, and when a person says no in its own dialog."""
    world = World()
    world.works = False
    presenter = page(world)
    presenter.press()
    drive(presenter)
    assert presenter.state.phase == "failed" and "could not be installed" in presenter.state.detail
    assert "nibabel>=5.2" in presenter.state.detail


def test_after_a_restart_it_goes_on():
    world, settings = World(), {}
    world.trouble["torch"] = RestartNeeded("The PyTorch extension was installed.")
    presenter = page(world, settings=settings)
    presenter.press()
    drive(presenter)
    assert presenter.state.phase == "restart" and presenter.state.detail == "The PyTorch extension was installed."
    assert settings[PENDING] == "1"
    world.trouble.clear()
    again = page(world, settings=settings)
    assert again.state.headline == "The installation that waited for a restart can go on now."
    again.press()
    drive(again)
    assert again.state.phase == "complete" and settings[PENDING] == ""


def test_no_device_works_or_the_engine_does_not_start():
    ready = {"torch": "2.13.0", "nibabel": "5.4", "safetensors": "0.8"}
    dead = {**DOCTOR, "devices": [{**DOCTOR["devices"][0], "works": False}], "problems": ["Nothing works."]}
    for answer, words in ((dead, "Nothing works. No device works; choose Repair"),
                          (EngineError("The worker could not start (no such file)."), "could not start")):
        world = World(**ready)
        presenter = page(world, engine=FakeEngine(doctor=answer))
        presenter.check()
        drive(presenter)
        assert presenter.state.phase == "failed" and words in presenter.state.detail
        assert presenter.state.button_text == "Repair"
        presenter.set_engine(FakeEngine())
        presenter.press()
        drive(presenter)
        assert presenter.state.phase == "complete"
        assert [(call[0], call[-1]) for call in world.calls] == [("torch", True), ("pip", True)]


def test_repair_checks_the_default_model_and_leaves_a_torch_that_works():
    world = World(torch="2.13.0", nibabel="5.4", safetensors="0.8")
    presenter = page(world)
    checked = []
    presenter._registry.verify = lambda *_: checked.append(1)
    presenter.check()
    drive(presenter)
    presenter.press()
    assert [step.text for step in presenter.state.steps] == [
        "Install the packages again", "Check the default model", "Try the devices"]
    drive(presenter)
    assert presenter.state.phase == "complete" and checked == [1] and [call[0] for call in world.calls] == ["pip"]


def test_requirements_are_read_as_pip_reads_them():
    assert requirement_lines(REQUIREMENTS) == ["nibabel>=5.2", "safetensors>=0.4",
                                               'winreg-only>=1; sys_platform == "nowhere"']
    rows = look_at_packages(["a>=1.9", "b>=2,<3", "c"], {}, {"a": "1.10", "b": "3.0", "c": "0.1rc1"}.get)
    assert [row.state for row in rows] == ["ok", "old", "ok"]
    with pytest.raises(InputError, match="cannot be read; install HiEndSeg again"):
        look_at_packages(["no requirement at all"], {})
    assert look_at_packages(["numpy>=1.26"])[0].state == "ok", "this Python's own"


def test_the_shipped_list_and_sizes_fit_each_other():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "HiEndSeg" / "Resources" / "requirements.txt").read_text()
    sizes = package_sizes()
    rows = look_at_packages(["torch>=2.4", *requirement_lines(text)], sizes)
    assert len(rows) > 4 and all(row.download and row.disk and row.why for row in rows)
    assert all(0 < row.download[0] <= row.download[1] and row.download[1] <= row.disk[1] for row in rows)


def test_sizes_are_a_courtesy(tmp_path):
    assert package_sizes(tmp_path / "missing.json") == {}
    (tmp_path / "odd.json").write_text("[1]")
    assert package_sizes(tmp_path / "odd.json") == {}
    rows = look_at_packages(["nibabel>=5.2"], {"nibabel": {"download": "many"}}, lambda name: None)
    assert rows[0].download is None


def test_the_report_holds_what_helps_and_nothing_of_a_patient():
    world = World(torch="2.13.0", nibabel="5.4")
    presenter = page(world)
    presenter._registry.problems = [ModelProblem(None, "The card in /home/anna/models/x cannot be read.")]
    presenter.check()
    presenter._report = DOCTOR
    text = presenter.report(error='"Anna^Maria" at /home/anna/Anna^Maria.nii failed', log=["opened Anna^Maria", "C:\\ct"],
                            secrets=["Anna^Maria"])
    assert "3D Slicer 5.10.0" in text and "torch>=2.4: 2.13.0" in text and "safetensors>=0.4: missing (missing)" in text
    assert "cuda:0: A card works, 8 GiB." in text and "tiny@1.0.0 (tiny, 000000000000)" in text
    assert "Anna" not in text and "anna" not in text and "C:\\ct" not in text and '"<name>" at <path> failed' in text


def test_a_report_before_anything_is_known():
    text = bug_report(host="Python", packages=[], doctor=None, cards=[])
    assert "Devices: not looked at" in text and "Last error:\n  none" in text and text.endswith("  empty\n")
