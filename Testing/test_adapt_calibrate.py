"""Grey values first: a scanner that shows everything darker is understood by a curve, and for the next person, too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapt_phantoms import LEGEND, parent, phantom, row, run

from HiEndSegLib.errors import Cancelled
from HiEndSegLib.geometry.curve import apply_curve
from HiEndSegLib.models.loading import Model
from HiEndSegLib.networks import vit
from HiEndSegLib.networks.objective import asked_loss
from HiEndSegLib.operations.adapt import _Job
from HiEndSegLib.operations.adapt_calibrate import _curved, _kept
from HiEndSegLib.operations.adapt_report import mean_loss
from HiEndSegLib.operations.adapt_scores import dice
from HiEndSegLib.operations.segment import segment
from HiEndSegLib.tasks import CancelToken

STEPS = 80


def scanned(seed, shift=(0, 0, 0)):
    """A phantom as another scanner shows it."""
    volume, labels = phantom(seed=seed, shift=shift)
    inside = volume.array > -500
    return volume.with_array(np.where(inside, 0.4 * volume.array - 110, volume.array).astype(np.int16)), labels


def scores(model, volume, labels):
    found = segment(model, volume, device="cpu", precision="float32").labels.array
    return {label.id: dice(found == label.value, labels.array == label.value) for label in LEGEND[:3]}


@pytest.fixture(scope="module")
def matched():
    """Only the curve is learned: the training after it has one step."""
    return run(parent(), *scanned(1), ["liver", "kidney_left"], steps=1, recipe={"curve_steps": STEPS})


def learned(result):
    model = parent()
    return Model(replace(model.card, curve=result.curve), result.network, model.device)


def test_what_another_scanner_shows_is_found_on_another_person_also_what_was_not_taught(matched):
    grey = matched.report["grey_values"]
    assert grey["kept"] and grey["dice_after"] > grey["dice_before"] + 0.2 and matched.curve == grey["points"]
    assert matched.better and row(matched, "liver")["dice_after"] > row(matched, "liver")["dice_before"]
    assert any("grey values" in sentence for sentence in matched.messages)
    volume, labels = scanned(7, shift=(1, -1, 2))
    before, after = scores(parent(), volume, labels), scores(learned(matched), volume, labels)
    assert after["liver"] > before["liver"] + 0.2 and after["kidney_left"] > before["kidney_left"] + 0.2
    assert after["kidney_right"] > before["kidney_right"] + 0.2                         # not taught


def test_the_network_is_the_parents(matched):
    if matched.report["best_step"] == 0:
        assert not matched.replaced and not matched.low_rank
    points = np.array(matched.curve)
    assert (np.diff(points[:, 0]) > 0).all() and len(points) <= 64 and np.isfinite(points).all()


def test_the_same_seed_gives_the_same_curve(matched):
    again = run(parent(), *scanned(1), ["liver", "kidney_left"], steps=1, recipe={"curve_steps": STEPS})
    assert again.curve == matched.curve


def test_recomputed_activations_give_the_same_curve(monkeypatch):
    counted, found, recomputed = [], [], vit.checkpoint
    monkeypatch.setattr(vit, "checkpoint", lambda *a, **k: counted.append(1) or recomputed(*a, **k))
    for short in (False, True):
        monkeypatch.setattr(_Job, "_memory_is_short", lambda self, short=short: short)
        result = run(parent(), *scanned(1), ["liver"], steps=1, recipe={"curve_steps": 3, "every": 1})
        found.append((len(counted), result.report["grey_values"]["points"]))
    assert found[0][0] == 0 and found[1][0] >= 3                # the frozen ViT of the step after it has none
    assert np.allclose(found[0][1], found[1][1], atol=1e-3)


def test_what_is_found_well_needs_no_curve():
    result = run(parent(), *phantom(seed=3), ["liver"], steps=1, recipe={"curve_steps": STEPS})
    assert result.report["grey_values"] is None and result.curve == []


def test_a_curve_that_does_not_help_is_not_kept():
    volume, labels = phantom(seed=3)
    noise = np.random.default_rng(0).integers(-300, 400, volume.shape).astype(np.int16)     # nothing to be seen in it
    result = run(parent(), volume.with_array(noise), labels, ["liver"], steps=1, recipe={"curve_steps": 10})
    grey = result.report["grey_values"]
    assert not grey["kept"] and result.curve == []
    assert not any("grey values" in sentence for sentence in result.messages)


def test_a_new_structure_alone_says_nothing_about_grey_values():
    result = run(parent(), *scanned(1), ["stomach"], steps=1, recipe={"curve_steps": STEPS})
    assert result.report["grey_values"] is None


def test_a_version_goes_on_from_its_parents_curve(matched):
    model = learned(matched)
    result = run(model, *scanned(5), ["liver"], steps=1, recipe={"curve_steps": STEPS})
    assert result.curve == matched.curve or result.report["grey_values"]["kept"]


def test_cancelling_while_grey_values_are_matched():
    cancel = CancelToken()

    def stop(fraction, message):
        if message.startswith("Matching grey values, 3"):
            cancel.cancel()

    with pytest.raises(Cancelled):
        run(parent(), *scanned(1), ["liver"], steps=1, recipe={"curve_steps": STEPS}, progress=stop, cancel=cancel)


def test_the_curve_with_a_gradient_is_the_curve():
    points = torch.tensor([-100.0, 0.0, 50.0, 300.0])
    change = torch.tensor([10.0, -20.0, 0.0, 40.0], requires_grad=True)
    image = torch.linspace(-400, 500, 301).reshape(7, 43, 1)
    curve = torch.stack([points, points + change], 1).detach().numpy()
    found = _curved(image, points, change)
    assert found.detach().numpy() == pytest.approx(apply_curve(image.numpy(), curve), abs=1e-3)
    found.sum().backward()
    assert float(change.grad.sum()) == pytest.approx(301)               # every voxel follows the points around it


def test_the_loss_of_what_is_asked_for():
    drawn = torch.tensor([1] * 10 + [0] * 10 + [255] * 5)
    right = torch.full((3, 25), 1e-4)
    right[1, :10], right[0, 10:] = 1, 1
    wrong = right.roll(10, 1)
    assert float(asked_loss(right, drawn, [1])) < 0.01 < 1 < float(asked_loss(wrong, drawn, [1]))
    other = right.clone()
    other[2, 10:], other[0, 10:] = 1, 0                                  # background or any other class: all the same
    assert float(asked_loss(other, drawn, [1])) == pytest.approx(float(asked_loss(right, drawn, [1])), abs=1e-3)




def test_the_result_lies_between_parent_and_what_was_learned():
    case = phantom(seed=1, hu={"liver": 20})
    whole, part = (run(parent(), *case, ["liver"], steps=30, recipe={"blend": blend, "every": 30})
                   for blend in (1.0, 0.5))
    assert whole.replaced and whole.low_rank and whole.report["best_step"] == part.report["best_step"] == 30
    for name, tensor in whole.replaced.items():
        start = parent().network.state_dict()[name]
        assert torch.allclose(part.replaced[name], start.lerp(tensor, 0.5), atol=1e-6), name
    for name, (a, b) in whole.low_rank.items():
        assert torch.allclose(part.low_rank[name][1] @ part.low_rank[name][0], 0.5 * (b @ a), atol=1e-6), name


def test_a_new_structure_is_learned_whole():
    whole, part = (run(parent(), *phantom(seed=2), ["stomach"], steps=12, recipe={"blend": blend})
                   for blend in (1.0, 0.4))
    assert all(torch.equal(tensor, part.replaced[name]) for name, tensor in whole.replaced.items())


def test_the_parents_answer_counts_where_it_names_what_is_not_taught():
    parent_says = torch.tensor([0] * 5 + [1] * 5 + [2] * 5)                     # background, taught, not taught
    scores = torch.full((3, 15), 1e-3)
    scores[2, 10:] = 1
    assert float(_kept(scores, parent_says, [1])) < 1e-6
    changed = scores.clone()
    changed[0, :10] = 1
    assert float(_kept(changed, parent_says, [1])) < 1e-6, "neither background nor what is taught is held"
    changed[2, 10:], changed[1, 10:] = 1e-3, 1
    assert float(_kept(changed, parent_says, [1])) > 5
    assert float(_kept(scores, torch.zeros(15, dtype=torch.uint8), [1])) == 0


# ------------------------------------------------------------------------------------- what a curve costs the others


def washed_out():
    """A person whose liver hardly differs from water, and the liver alone drawn."""
    volume, labels = phantom(seed=1)
    liver = labels.array == 1
    array = volume.array.astype(float)
    array[liver] = 10 + np.random.default_rng(0).normal(0, 8, liver.sum())
    return volume.with_array(array.astype(np.int16)), labels.with_array(liver.astype(np.uint8))


def test_what_a_curve_changes_in_others_is_told_by_the_answer_of_the_model_that_was_given():
    volume, drawn = washed_out()
    result = run(parent(), volume, drawn, ["liver"], steps=1, recipe={"curve_steps": STEPS})
    assert result.report["grey_values"]["kept"] and result.report["grey_values"]["others_lost"] > 0.02
    before, after = (segment(model, volume, device="cpu", precision="float32").labels.array == 2
                     for model in (parent(), learned(result)))
    told = row(result, "kidney_left", "protected")
    assert told["dice_before"] is None and told["agreement"] == pytest.approx(dice(after, before), abs=0.05)
    assert told["agreement"] < 0.95 and "kidney_left" in result.report["worse"]
    assert "Not taught and changed: Left kidney" in result.report["sentence"]


def test_a_curve_that_costs_the_others_more_than_it_gains_is_left_out():
    volume, drawn = washed_out()
    result = run(parent(), volume, drawn, ["liver"], steps=1, recipe={"curve_steps": STEPS, "protect": 5.0})
    grey = result.report["grey_values"]
    assert grey["dice_after"] > grey["dice_before"] + 0.02 and not grey["kept"] and result.curve == []
    assert any("other structures would have lost more" in sentence for sentence in result.messages)


def test_what_the_others_lose_decides_whether_it_got_better():
    rows = [{"dice_before": 0.9, "dice_after": 0.5, "agreement": 0.6, "voxels": 500},
            {"dice_before": None, "dice_after": None, "agreement": 0.9, "voxels": 500},
            {"dice_before": None, "dice_after": None, "agreement": 0.0, "voxels": 20}]
    assert mean_loss(rows) == pytest.approx(0.25) and mean_loss([]) == 0.0
    assert mean_loss([{"dice_before": 0.5, "dice_after": 0.9, "agreement": 0.1, "voxels": 500}]) == 0.0
