"""Held-out slabs, scores against MONAI's, and what the teaching loss asks for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapt_phantoms import LEGEND, phantom, untrained

from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.geometry.writing import read_labels, write_labels
from HiEndSegLib.networks.objective import teaching_loss
from HiEndSegLib.operations.adapt import _Job
from HiEndSegLib.operations.adapt_case import (
    OPEN,
    Case,
    class_map,
    held_out_layers,
    labels_on,
    on_model_lattice,
    runs,
)
from HiEndSegLib.operations.adapt_crops import CropSampler
from HiEndSegLib.operations.adapt_scores import dice, surface_distance
from HiEndSegLib.tasks import CancelToken, no_progress, no_record


def columns(**spans):
    """A label map with a column of each class over [first, last) layers."""
    drawn = np.zeros((8, 8, 60), np.uint8)
    for number, (name, (first, last)) in enumerate(spans.items(), start=1):
        drawn[number, 2:6, first:last] = number
    return drawn


def shares(drawn, held):
    return [float((drawn[:, :, held] == n).sum() / (drawn == n).sum()) for n in range(1, int(drawn.max()) + 1)]


def test_every_structure_gives_about_a_fifth():
    drawn = columns(long=(2, 58), short=(20, 34), other=(40, 55))
    held = held_out_layers(drawn, [1, 2, 3])
    assert all(0.13 <= share <= 0.45 for share in shares(drawn, held))
    assert not held[:3].any() and not held[57:].any()                   # something is left above and below


def test_structures_side_by_side_share_one_slab():
    drawn = columns(left=(10, 40), right=(12, 42))
    assert len(runs(held_out_layers(drawn, [1, 2]))) == 1


def test_a_flat_structure_is_not_held_out():
    drawn = columns(flat=(10, 13))
    assert not held_out_layers(drawn, [1]).any()


def test_many_structures_never_lose_most_of_one():
    rng = np.random.default_rng(0)
    drawn = np.zeros((24, 8, 80), np.uint8)
    for number in range(1, 20):
        first = int(rng.integers(0, 60))
        drawn[number, 2:6, first:first + int(rng.integers(3, 20))] = number
    held = held_out_layers(drawn, range(1, 20))
    assert max(shares(drawn, held)) <= 0.42 + 1e-9 and held.any()


def test_training_never_sees_held_out_voxels():
    model = untrained()
    volume, labels = phantom()
    lattice = on_model_lattice(volume, model.card)
    drawn = class_map(labels_on(lattice, labels), {1: 1})
    held = held_out_layers(drawn, [1])
    case = Case(lattice, drawn, np.zeros_like(drawn), held, (1,))
    assert held.any() and (case.targets[:, :, held] == OPEN).all() and not held[case.centres[1][:, 2]].any()
    assert (case.targets[:, :, ~held] == drawn[:, :, ~held]).all()


def test_every_other_crop_is_about_a_taught_structure():
    model = untrained()
    volume, labels = phantom()
    lattice = on_model_lattice(volume, model.card)
    drawn = class_map(labels_on(lattice, labels), {2: 2})
    case = Case(lattice, drawn, np.zeros_like(drawn), np.zeros(drawn.shape[2], bool), (2,))
    crops = [CropSampler([case], model.card, (24, 24, 24), seed=s) for s in range(10)]
    first, second = zip(*((sampler.draw(), sampler.draw()) for sampler in crops))
    with_it = [sum(bool((crop.drawn == 2).any()) for crop in row) for row in (first, second)]
    assert with_it[0] >= 9 and with_it[0] >= with_it[1]
    assert all(crop.x.shape == (1, 24, 24, 24) and 0 <= crop.x.min() and crop.x.max() <= 1 for crop in first)
    again = CropSampler([case], model.card, (24, 24, 24), seed=0).draw()
    assert torch.equal(again.x, first[0].x) and torch.equal(again.drawn, first[0].drawn)


def test_crops_are_never_mirrored():
    """Left and right are labels: whatever is done to a crop, its axes keep their handedness."""
    volume, labels = phantom()
    lattice = on_model_lattice(volume, untrained().card)
    drawn = class_map(labels.array, {1: 1})
    case = Case(lattice, drawn, np.zeros_like(drawn), np.zeros(drawn.shape[2], bool), (1,))
    sampler = CropSampler([case], untrained().card, (16, 16, 16), 0)
    for _ in range(40):
        grid = sampler.place()[3][0].flip(-1).double().numpy()             # (i, j, k) in shares of the volume
        axes = [grid[12, 8, 8] - grid[4, 8, 8], grid[8, 12, 8] - grid[8, 4, 8], grid[8, 8, 12] - grid[8, 8, 4]]
        assert np.linalg.det(np.array(axes)) > 0 and all(axis[number] > 0 for number, axis in enumerate(axes))


def test_labels_outside_their_lattice_are_not_annotated():
    volume, labels = phantom()
    half = labels.with_array(labels.array)
    half = replace(labels, array=labels.array[:18])
    found = labels_on(on_model_lattice(volume, untrained().card), half)
    assert (found[19:] == OPEN).all() and (found[:17] == labels.array[:17]).all()


# ---------------------------------------------------------------------------------------------------- scores


def test_surface_distance_is_monai_s():
    from monai.metrics import compute_average_surface_distance

    rng = np.random.default_rng(1)
    grid = np.indices((30, 26, 22))
    true = sum((g - c) ** 2 for g, c in zip(grid, (14, 12, 10))) < 49
    found = (sum((g - c) ** 2 for g, c in zip(grid, (16, 12, 11))) < 36) | (rng.random(true.shape) < 0.001)
    spacing = (3.0, 3.0, 5.0)
    as_monai = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (found, true)]
    expected = compute_average_surface_distance(*as_monai, include_background=True, symmetric=True, spacing=spacing)
    assert surface_distance(found, true, spacing) == pytest.approx(float(expected), rel=1e-4)


def test_a_cut_through_a_structure_is_no_surface():
    true = np.zeros((20, 20, 30), bool)
    true[5:15, 5:15, 2:28] = True
    found = np.roll(true, 1, axis=0)
    where = np.zeros_like(true)
    where[:, :, 12:18] = True
    assert 0 < surface_distance(found, true, (1, 1, 1), where) < 0.6
    assert surface_distance(true, true, (1, 1, 1), where) == 0


def test_scores_of_nothing_are_none():
    nothing, one = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert dice(nothing, nothing) is None and dice(one, nothing) == 0 and dice(one, one) == 1
    assert surface_distance(nothing, one, (1, 1, 1)) is None
    assert dice(one, one, nothing) is None


# ---------------------------------------------------------------------------------------------------- the loss


def softmaxed(logits):
    return torch.as_tensor(logits, dtype=torch.float32).softmax(0)


def test_the_parent_itself_moves_nothing_where_nothing_is_taught():
    torch.manual_seed(0)
    logits = torch.randn(4, 50, requires_grad=True)
    drawn = torch.zeros(50, dtype=torch.uint8)
    parent = logits.detach().softmax(0)
    parent[3] = 0                                            # class 3 is taught; the parent never saw it here
    start = parent.clamp_min(1e-9).log().requires_grad_(True)
    loss = teaching_loss(start.softmax(0), drawn, parent / parent.sum(0), [3])
    loss.backward()
    assert start.grad.abs().max() < 2e-3 and loss < 0.01


def test_drawn_voxels_pull_and_excluded_ones_push():
    logits = torch.zeros(3, 40, requires_grad=True)
    drawn = torch.tensor([2] * 10 + [0] * 20 + [255] * 10, dtype=torch.uint8)
    parent = softmaxed(torch.zeros(3, 40))
    teaching_loss(logits.softmax(0), drawn, parent, [2]).backward()
    assert (logits.grad[2, :10] < 0).all() and (logits.grad[2, 10:30] > 0).all()
    assert (logits.grad[:, 30:] == 0).all()


@pytest.mark.parametrize("hold", [0.0, 1.0])
def test_a_class_nobody_drew_in_this_case_may_take_what_the_parent_calls_otherwise(hold):
    drawn, parent = torch.zeros(20, dtype=torch.uint8), softmaxed([[4.0] * 20, [0.0] * 20])
    taken = softmaxed([[0.0] * 20, [0.0] * 20, [4.0] * 20])             # the new class takes the background
    allowed = teaching_loss(taken, drawn, parent, [1], silent=[2], hold=hold)
    refused = teaching_loss(taken, drawn, parent, [1, 2], hold=hold)
    assert allowed < 0.2 and refused > 1


def test_what_a_class_nobody_drew_takes_is_held_against_no_other_class():
    """A quarter of the background becomes the new class 4, or the known class 3 that is taught elsewhere; the organs 1
    and 2 stay. That costs nothing, and one of the organs lost to it costs no more than to anything else."""
    parent = torch.eye(4)[:, torch.tensor([0] * 20 + [1] * 10 + [2] * 10 + [3] * 10)]
    drawn = torch.zeros(50, dtype=torch.uint8)

    def loss(changes, silent):
        found = parent.argmax(0).clone()
        for place, number in changes:
            found[place] = number
        return float(teaching_loss(torch.eye(5)[:, found], drawn, parent, [], silent=silent))

    for taker in (3, 4):
        assert abs(loss([(slice(0, 5), taker)], [taker])) < 1e-3 < loss([(slice(0, 5), taker)], [])
        assert abs(loss([(slice(20, 25), taker)], [3, 4])) < 1e-3       # nobody said that it is not there
    assert loss([(slice(40, 45), 0)], [3, 4]) > 0.5                     # what the parent found of it stays


def test_uncertainty_of_the_parent_draws_no_class_that_nobody_drew():
    parent = torch.full((2, 30), 0.5)
    drawn = torch.zeros(30, dtype=torch.uint8)
    kept = torch.cat([parent, torch.zeros(1, 30)])
    taken = torch.tensor([[0.0], [0.0], [1.0]]).expand(3, 30)
    of = [float(teaching_loss(scores, drawn, parent, [], silent=[2])) for scores in (kept, taken)]
    assert of[0] == pytest.approx(of[1], abs=1e-4)


def test_structures_vary_in_brightness_and_the_background_does_not():
    from HiEndSegLib.operations.augment import vary_structures

    structures = torch.zeros(16, 16, 16, dtype=torch.int64)
    structures[:6], structures[10:] = 3, 7
    image = torch.full((16, 16, 16), 40.0)
    varied = vary_structures(image, structures, np.random.default_rng(0), 30.0) - image
    inside = [float(varied[index].mean()) for index in (slice(0, 3), slice(13, 16))]
    assert abs(inside[0] - inside[1]) > 1 and min(map(abs, inside)) > 1
    assert varied[8].abs().max() < 0.1 * max(map(abs, inside))
    assert torch.equal(vary_structures(image, structures, np.random.default_rng(0), 0.0), image)


def test_beyond_a_slicer_segmentation_nothing_is_drawn_and_beyond_other_labels_nobody_knows(tmp_path):
    volume, labels = phantom()
    box = tuple(slice(a, b) for a, b in ((4, 30), (4, 30), (2, 30)))
    matrix = labels.ijk_to_ras.copy()
    matrix[:3, 3] = (labels.ijk_to_ras @ [4, 4, 2, 1.0])[:3]
    part = Volume(labels.array[box].copy(), matrix, "part")
    write_labels(part, LEGEND, tmp_path / "mine.seg.nrrd")
    write_labels(part, LEGEND, tmp_path / "mine.nii.gz")
    seen = {}
    for name in ("mine.seg.nrrd", "mine.nii.gz"):
        found, _legend = read_labels(tmp_path / name)
        job = _Job(untrained(), no_progress, no_record, CancelToken())
        job.check_options(["liver"], LEGEND, "quick", "ask", "auto", None)
        seen[name] = job.check_input(volume, found)[1].array
    outside = np.ones(labels.array.shape, bool)
    outside[box] = False
    assert (seen["mine.seg.nrrd"][outside] == 0).all() and (seen["mine.nii.gz"][outside] == OPEN).all()
    assert all((array[box] == labels.array[box]).all() for array in seen.values())


def test_labels_beside_the_volume_are_said_to_lie_there():
    volume, labels = phantom()
    matrix = labels.ijk_to_ras.copy()
    matrix[0, 3] += 5000
    job = _Job(untrained(), no_progress, no_record, CancelToken())
    job.check_options(["liver"], LEGEND, "quick", "ask", "auto", None)
    with pytest.raises(InputError, match="What is drawn lies outside the volume"):
        job.check_input(volume, replace(labels, ijk_to_ras=matrix))
