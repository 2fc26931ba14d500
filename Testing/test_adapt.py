"""adapt: a small model learns from one phantom, and what it was not taught stays."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapt_phantoms import LEGEND, RECIPE, SPACING, parent, phantom, row, run, untrained

from HiEndSegLib.errors import Cancelled, HiEndSegError, InputError, OptionError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.networks import vit
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.operations.adapt import adapt
from HiEndSegLib.tasks import CancelToken

#: A liver the parent has never seen like this: it does not see it at all.
DARK = {"liver": -60}


@pytest.fixture(scope="module")
def dark():
    """The parent taught a darker liver, with what it said meanwhile."""
    records = []
    result = run(parent(), *phantom(seed=1, hu=DARK), ["liver"], steps=60, record=records.append,
                 recipe={"lr": 8e-3, "every": 15})
    return result, records


@pytest.fixture(scope="module")
def stomach():
    return run(parent(), *phantom(seed=2), ["stomach"], steps=60, recipe={"lr": 1e-2})


def restored(result, model):
    """The network that parent weights, whole tensors and factors make, as a version stores them."""
    state = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    for name, (a, b) in result.low_rank.items():
        state[name] += (b @ a).reshape(state[name].shape)
    state.update(result.replaced)
    network = build_network(result.network_config)
    network.load_state_dict(state, strict=True)
    return network.eval()


def test_a_structure_of_another_brightness_is_learned_and_the_others_stay(dark):
    result, _ = dark
    liver = row(result, "liver")
    assert result.better and result.report["better"] and not liver["new"]
    assert liver["dice_after"] > liver["dice_before"] + 0.25
    assert liver["surface_before_mm"] is None and liver["surface_after_mm"] > 0     # it was not found at all before
    assert 0.1 < liver["held_out_voxels"] / liver["voxels"] < 0.45
    assert all(entry["agreement"] > 0.85 for entry in result.report["protected"] if entry["voxels"] > 100)
    assert f"to {liver['dice_after']:.2f}" in result.report["sentence"] and result.report["sentence"] in result.messages


def test_the_report_is_whole_and_plain(dark):
    import json

    report = json.loads(json.dumps(dark[0].report))
    assert report["speed"] == "quick" and report["device"] == "cpu" and report["precision"] == "float32"
    assert report["threads"] == 1 and report["seed"] == 0 and report["steps"] == 60 and report["stopped"] == "end"
    assert 0 < report["best_step"] <= 60 and report["peak_memory_bytes"] > 1e7 and report["seconds"] > 0
    assert report["teaching_cases"] == 0 and report["parameters"]["rank"] == RECIPE.rank
    (low, high), = report["held_out_mm"]
    assert SPACING * 13 < low < high < SPACING * 27                     # within the liver's layers
    ids = {entry["id"] for entry in report["protected"]}
    assert ids == {"kidney_left", "kidney_right"}
    for entry in report["protected"]:
        assert set(entry) >= {"id", "name", "agreement", "dice_before", "dice_after"}


def test_records_tell_steps_and_scores(dark):
    records = dark[1]
    scores = [entry for entry in records if entry["kind"] == "score"]
    steps = [entry for entry in records if entry["kind"] == "step"]
    assert [entry["step"] for entry in scores] == [0, 15, 30, 45, 60]
    assert steps[-1]["step"] == steps[-1]["of"] == 60 and all(np.isfinite(entry["loss"]) for entry in steps)
    assert set(scores[0]["dice"]) == {"liver"} and sum(entry["best"] for entry in scores) >= 2


def test_the_changes_over_the_parent_are_the_new_network(dark, stomach):
    x = torch.rand(1, 1, 24, 24, 24)
    for result in (dark[0], stomach):
        assert result.low_rank and result.replaced
        assert not any(name.startswith("encoder.vit") for name in (*result.low_rank, *result.replaced))
        torch.testing.assert_close(restored(result, parent()).scores(x), result.network.scores(x), atol=1e-5, rtol=0)
        assert not any(p.requires_grad for p in result.network.parameters()) and not result.network.training


def test_the_parent_is_left_as_it_was():
    model = parent()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    run(model, *phantom(seed=1, hu=DARK), ["liver"], steps=2, speed="full")
    assert all(torch.equal(tensor, model.network.state_dict()[name]) for name, tensor in before.items())
    assert not model.network.training


def test_a_new_structure_gets_a_class_of_its_own(stomach):
    entry = row(stomach, "stomach")
    assert entry["new"] and entry["dice_before"] is None and entry["dice_after"] > 0.35 and stomach.better
    assert [label.id for label in stomach.labels] == ["liver", "kidney_left", "kidney_right", "stomach"]
    assert [label.value for label in stomach.labels] == [1, 2, 3, 4] and stomach.network.num_classes == 5
    assert stomach.network_config["num_classes"] == 5 and "classifier.weight" in stomach.replaced
    assert all(entry["agreement"] > 0.85 for entry in stomach.report["protected"] if entry["voxels"] > 100)


def test_a_maskmed_head_learns_a_new_structure_too():
    result = run(parent("maskmed"), *phantom(seed=2), ["stomach"], steps=80, recipe={"lr": 1e-2, "lr_middle": 6e-3})
    assert row(result, "stomach")["dice_after"] > 0.25 and result.network.num_classes == 5
    assert result.network.head.class_prior.shape == (5, 6)


def test_full_speed_changes_every_part():
    result = run(parent(), *phantom(seed=1, hu=DARK), ["liver"], steps=12, speed="full", recipe={"every": 6})
    assert result.report["speed"] == "full" and not result.low_rank
    if result.report["best_step"]:
        assert any(name.startswith("encoder.vit") for name in result.replaced)


def test_recomputed_activations_give_the_same_model(monkeypatch):
    """Where memory is short, blocks are computed again on the way back; in float32 that changes nothing."""
    from HiEndSegLib.operations.adapt import _Job

    counted, found = [], []
    recomputed = vit.checkpoint
    monkeypatch.setattr(vit, "checkpoint", lambda *a, **k: counted.append(1) or recomputed(*a, **k))
    for short in (False, True):
        monkeypatch.setattr(_Job, "_memory_is_short", lambda self, short=short: short)
        result = run(parent(), *phantom(seed=1, hu=DARK), ["liver"], steps=4, speed="full", recipe={"every": 4})
        found.append(result.network.state_dict())
        assert bool(counted) == short
    assert all(torch.allclose(one, found[1][name], atol=1e-6) for name, one in found[0].items())


@pytest.mark.parametrize("kind", ["pointwise", "maskmed"])
@pytest.mark.parametrize("speed", ["quick", "full"])
def test_half_precision_learns_as_well(kind, speed):
    result = adapt(untrained(kind), *phantom(seed=1), LEGEND, structures=["liver"], speed=speed, threads=1,
                   precision="half", recipe=replace(RECIPE, steps=3, every=3))
    assert result.report["precision"] == "half" and all(torch.isfinite(p).all() for p in result.network.parameters())
    assert all(p.dtype == torch.float32 for p in result.network.parameters())


def test_nothing_to_learn_is_said_and_not_called_better():
    """Taught just what it says already, with steps too small to matter."""
    from HiEndSegLib.operations import adapt_case

    model = parent()
    volume, _ = phantom(seed=3)
    lattice = adapt_case.on_model_lattice(volume, model.card)
    from HiEndSegLib.tasks import no_progress
    answer = adapt_case.answer_of(adapt_case.whole_scores(
        model.network, model.card, lattice, "cpu", 1 << 34, 1 << 34, "float32", print, no_progress, CancelToken()),
        lattice)
    result = run(model, volume, Volume(answer, volume.ijk_to_ras), ["liver"], legend=LEGEND[:3], steps=4,
                 recipe={"lr": 1e-6, "lr_middle": 1e-6, "every": 2})
    assert not result.better and "Nothing got better" in result.report["sentence"]
    assert any("just as the model answered" in sentence for sentence in result.messages)


# ---------------------------------------------------------------------------------------------------- bad input


def swapped():
    volume, labels = phantom()
    table = np.array([0, 1, 3, 2, 4], np.uint8)
    return volume, labels.with_array(table[labels.array])


def test_swapped_sides_are_asked_about():
    with pytest.raises(OptionError, match="Left kidney and Right kidney look swapped") as error:
        run(parent(), *swapped(), ["kidney_left"], steps=1)
    assert error.value.code == "swapped-sides"


def test_sides_can_be_swapped_or_kept():
    result = run(parent(), *swapped(), ["kidney_left"], steps=1, sides="swap")
    straight = run(parent(), *phantom(), ["kidney_left"], steps=1)
    assert any("were swapped, as asked" in sentence for sentence in result.messages)
    assert row(result, "kidney_left")["dice_before"] == row(straight, "kidney_left")["dice_before"] > 0.7
    kept = run(parent(), *swapped(), ["kidney_left"], steps=1, sides="keep")
    assert row(kept, "kidney_left")["dice_before"] < 0.2


@pytest.mark.parametrize("change, structures, error, match", [
    (lambda a: a * 0, ["liver"], OptionError, "not one voxel of it is drawn"),
    (lambda a: np.where((a == 1) & (np.cumsum(a == 1).reshape(a.shape) > 2), 0, a), ["liver"], OptionError,
     "drawn in 2 voxels"),
    (lambda a: a, ["pancreas"], OptionError, "no structure 'pancreas'"),
    (lambda a: a, [], OptionError, "No structure was chosen"),
    (lambda a: a + 0.5, ["liver"], InputError, "whole numbers"),
    (lambda a: a[0], ["liver"], InputError, "2 dimensions"),
])
def test_what_cannot_be_learned_from_is_refused(change, structures, error, match):
    volume, labels = phantom()
    with pytest.raises(error, match=match):
        run(parent(), volume, replace(labels, array=change(labels.array)), structures)


def test_other_refusals_name_what_is_possible():
    volume, labels = phantom()
    for options, match in (({"speed": "fast"}, "auto, quick or full"), ({"sides": "left"}, "ask, keep or swap"),
                           ({"steps": 0}, "1 or more"), ({"device": "cuda:7"}, "cuda:7")):
        with pytest.raises(HiEndSegError, match=match):
            adapt(parent(), volume, labels, LEGEND, structures=["liver"], **options)
    with pytest.raises(InputError, match="no body"):
        run(parent(), volume.with_array(np.full_like(volume.array, -1000)), labels, ["liver"])


def test_labels_on_another_lattice_are_brought_over_and_that_is_said():
    volume, labels = phantom(seed=1, hu=DARK)
    matrix = labels.ijk_to_ras @ np.diag([-1, 1, 1, 1.0])                # i runs the other way
    matrix[:3, 3] = (labels.ijk_to_ras @ [labels.shape[0] - 1, 0, 0, 1])[:3]
    turned = Volume(np.ascontiguousarray(labels.array[::-1]), matrix, "labels")
    result = run(parent(), volume, turned, ["liver"], steps=1)
    assert any("another lattice" in sentence for sentence in result.messages)
    assert row(result, "liver")["voxels"] == (labels.array == 1).sum()


def test_unmarked_voxels_teach_nothing():
    volume, labels = phantom(seed=1, hu=DARK)
    array = labels.array.copy()
    array[:, 15:] = 255
    result = run(parent(), volume, labels.with_array(array), ["liver"], steps=1)
    assert row(result, "liver")["voxels"] == (array == 1).sum()
    assert (result.teaching_case.labels == 255).any()


# ---------------------------------------------------------------------------------------------------- running


def test_the_same_seed_gives_the_same_result():
    first, second = (run(parent(), *phantom(seed=1, hu=DARK), ["liver"], steps=6, seed=5) for _ in range(2))
    assert first.report["best_step"] == second.report["best_step"]
    for mine, theirs in zip(first.network.state_dict().values(), second.network.state_dict().values()):
        assert torch.equal(mine, theirs)


def test_the_random_state_of_the_program_is_left_alone():
    before = torch.get_rng_state()
    run(parent(), *phantom(seed=1), ["stomach"], steps=1)
    assert torch.equal(before, torch.get_rng_state())


def test_cancel_keeps_nothing_and_answers_at_once():
    token, asked = CancelToken(), []

    def record(values):
        if values["kind"] == "step":
            asked.append(time.monotonic())
            token.cancel()

    with pytest.raises(Cancelled):
        run(parent(), *phantom(seed=1, hu=DARK), ["liver"], steps=5000, record=record, cancel=token)
    assert len(asked) == 1


def test_finish_keeps_the_best_so_far():
    token = CancelToken()

    def record(values):
        if values["kind"] == "score" and values["step"] >= 20:
            token.finish()

    result = run(parent(), *phantom(seed=1, hu=DARK), ["liver"], steps=5000, record=record, cancel=token,
                 recipe={"every": 10})
    assert result.report["stopped"] == "asked" and 20 <= result.report["steps"] <= 31


def test_it_stops_by_itself_when_nothing_gains():
    result = run(parent(), *phantom(seed=1, hu=DARK), ["liver"], steps=400,
                 recipe={"lr": 1e-9, "lr_middle": 1e-9, "every": 2, "patience": 2})
    assert result.report["stopped"] == "early" and result.report["steps"] < 20


def test_an_earlier_case_is_remembered(stomach):
    """The second case has no stomach drawn; with the first one beside it the new class is still there after."""
    from HiEndSegLib.models.loading import Model

    model = Model(replace(parent().card, labels=stomach.labels, network=stomach.network_config), stomach.network,
                  torch.device("cpu"))
    volume, labels = phantom(seed=5, hu=DARK)
    result = run(model, volume, labels, ["liver"], teaching=[stomach.teaching_case], steps=30)
    assert result.report["teaching_cases"] == 1
    case = stomach.teaching_case
    assert case.image.dtype == np.int16 and case.labels.dtype == np.uint8 and case.ids == {4: "stomach"}
    assert len(case.held_out) >= 1 and case.image.shape == case.labels.shape
    assert row(result, "stomach", "protected")["agreement"] > 0.7


def test_what_was_kept_out_once_stays_out(stomach):
    result = run(parent(), *phantom(seed=2), ["stomach"], steps=1,
                 teaching=[replace(stomach.teaching_case, held_out=((0, 3),))])
    assert (0, 3) in result.teaching_case.held_out and result.report["teaching_cases"] == 0


def test_networks_that_cannot_be_adapted_are_refused():
    model = untrained()
    with pytest.raises(OptionError, match="kind 'tiny'"):
        run(replace(model, card=replace(model.card, network={"kind": "tiny"})), *phantom(), ["liver"])
