"""Matching and losses on cases small enough to compute by hand, with complete and partial labels."""

import math

import pytest
import torch

from HiEndSegLib.networks.matching import (fixed_assignment, marginal_cross_entropy, match, pairwise_mask_costs,
                                           partial_dice_loss, query_loss, targets_from_possible)


def bits(*classes):
    return sum(1 << c for c in classes)


def test_targets_of_a_complete_annotation():
    possible = torch.tensor([bits(0), bits(2), bits(2), bits(1)])
    t = targets_from_possible(possible, 4)
    assert t.classes.tolist() == [0, 1, 2]
    assert t.positive.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 0]]
    assert t.known.min() == 1 and not t.open_classes.any()


def test_targets_of_a_partial_annotation():
    """Voxel 0 is class 1, voxel 1 is background or class 2, voxel 2 can be anything."""
    t = targets_from_possible(torch.tensor([bits(1), bits(0, 2), bits(0, 1, 2)]), 3)
    assert t.classes.tolist() == [1]
    assert t.positive.tolist() == [[1, 0, 0]]
    assert t.known.tolist() == [[1, 1, 0]]
    assert t.open_classes.tolist() == [True, True, True]


def test_a_class_of_too_few_voxels_is_open_not_a_target():
    t = targets_from_possible(torch.tensor([bits(1)] + [bits(0)] * 9), 2, min_voxels=2)
    assert t.classes.tolist() == [0] and t.open_classes.tolist() == [False, True]


def test_costs_by_hand():
    t = targets_from_possible(torch.tensor([bits(1), bits(0)]), 2)
    logits = torch.tensor([[0.0, math.log(3)]])                    # probabilities 1/2, 3/4
    bce, dice = pairwise_mask_costs(logits, t)
    assert bce[0, 1].item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    assert dice[0, 1].item() == pytest.approx(1 - (2 * 0.5 + 1) / (1.25 + 1 + 1), rel=1e-6)


def test_matching_finds_the_permutation():
    possible = torch.tensor([bits(0)] * 4 + [bits(1)] * 4 + [bits(2)] * 4)
    t = targets_from_possible(possible, 3)
    masks = torch.full((5, 12), -6.0)
    masks[4, :4] = masks[0, 4:8] = masks[2, 8:] = 6.0
    query, target = match(torch.zeros(5, 4), masks, t)
    assert dict(zip(query.tolist(), t.classes[target].tolist())) == {4: 0, 0: 1, 2: 2}


def test_class_probability_decides_between_equal_masks():
    t = targets_from_possible(torch.tensor([bits(0), bits(1)]), 2)
    class_logits = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]])
    query, target = match(class_logits, torch.zeros(2, 2), t)
    assert dict(zip(query.tolist(), t.classes[target].tolist())) == {0: 1, 1: 0}


def test_unknown_voxels_change_neither_cost_nor_loss():
    possible = torch.tensor([bits(1), bits(0), bits(0, 1)])
    t = targets_from_possible(possible, 2)
    low, high = torch.tensor([[2.0, -1.0, -9.0]]), torch.tensor([[2.0, -1.0, 9.0]])
    for a, b in zip(pairwise_mask_costs(low, t), pairwise_mask_costs(high, t)):
        torch.testing.assert_close(a[:, 1], b[:, 1])
    logits = torch.zeros(1, 3)
    one = targets_from_possible(possible, 2)
    one.classes, one.positive, one.known = one.classes[1:], one.positive[1:], one.known[1:]
    assignment = (torch.tensor([0]), torch.tensor([0]))
    torch.testing.assert_close(query_loss(logits, low, one, assignment), query_loss(logits, high, one, assignment))


def test_an_unmatched_query_may_say_an_open_class_but_not_a_closed_one():
    complete = targets_from_possible(torch.tensor([bits(0)] * 4), 3)
    partial = targets_from_possible(torch.tensor([bits(0)] * 3 + [bits(0, 2)]), 3)
    class_logits = torch.zeros(2, 4)
    class_logits[0, 0] = 30.0                                     # matched to the background
    class_logits[1, 2] = 30.0                                     # says class 2
    masks = torch.full((2, 4), 9.0)
    closed = query_loss(class_logits, masks, complete, fixed_assignment(complete))
    opened = query_loss(class_logits, masks, partial, fixed_assignment(partial))
    assert closed > opened + 1
    class_logits[1, 2], class_logits[1, 1] = 0.0, 30.0            # class 1 is closed in both
    assert query_loss(class_logits, masks, partial, fixed_assignment(partial)) > opened + 1


def test_a_perfect_answer_costs_almost_nothing():
    possible = torch.tensor([bits(0)] * 50 + [bits(1)] * 50)
    t = targets_from_possible(possible, 2)
    class_logits = 40 * torch.eye(3)[:2]
    masks = torch.where(t.positive > 0, 20.0, -20.0)
    assert query_loss(class_logits, masks, t, match(class_logits, masks, t)) < 1e-3
    scores = t.positive
    assert marginal_cross_entropy(scores, possible) < 1e-3 and partial_dice_loss(scores, t) < 1e-3


def test_marginal_cross_entropy_by_hand():
    scores = torch.tensor([[0.2, 0.5], [0.3, 0.25], [0.5, 0.25]])
    value = marginal_cross_entropy(scores, torch.tensor([bits(0, 1), bits(2)]))
    assert value.item() == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2, rel=1e-6)
    # a voxel that may be anything teaches nothing and does not dilute the mean
    more = torch.cat([scores, torch.tensor([[1.0], [0], [0]])], 1)
    again = marginal_cross_entropy(more, torch.tensor([bits(0, 1), bits(2), bits(0, 1, 2)]))
    assert again.item() == pytest.approx(value.item(), rel=1e-6)


def test_marginal_loss_moves_mass_into_the_allowed_set_only():
    logits = torch.zeros(3, 1, requires_grad=True)
    marginal_cross_entropy(logits.softmax(0), torch.tensor([bits(0, 1)])).backward()
    assert logits.grad[2] > 0 and logits.grad[0] < 0
    torch.testing.assert_close(logits.grad[0], logits.grad[1])
