"""Object queries, uncertainty and effective ranks: against sums done the long way."""

from __future__ import annotations

import math

import attention_models as am
import numpy as np
import pytest
import torch
from segment_networks import BandNetwork, lattice, make_model, phantom
from torch import nn

from HiEndSegLib.errors import InputError, ModelError, OptionError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.networks.effective_rank import effective_rank, value_matrices
from HiEndSegLib.networks.mask_head import fuse, mask_logits
from HiEndSegLib.operations.attend_session import AttendSession
from HiEndSegLib.operations.effective_ranks import effective_ranks
from HiEndSegLib.operations.inspect_queries import inspect_queries
from HiEndSegLib.operations.object_queries import query_of_mask, query_of_structure, shares_of
from HiEndSegLib.operations.segment import segment
from HiEndSegLib.operations.uncertainty import uncertainty


@pytest.fixture(scope="module")
def mixed():
    """A session whose queries speak for several classes, and whose masks differ from place to place."""
    network = am.maskmed()
    with torch.no_grad():
        network.head.class_prior.copy_(torch.tensor([[2., 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [0, 2, 1, 0]]))
        torch.manual_seed(4)
        nn.init.normal_(network.head.mask_embed[-1].weight, std=2.0)
        nn.init.normal_(network.mask_features.detail.weight, std=2.0)
    array = np.random.default_rng(0).normal(40, 60, (24, 24, 24)).astype(np.float32)
    array[:, :12, 6:] -= 150
    array[9:, 4:9] += 200
    volume = Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]), "noise", {"modality": "CT"})
    return AttendSession(am.model(network, tile=24), volume)


@torch.no_grad()
def the_long_way(session):
    """p (Q, K), masks (Q, I, J, K), winners, all at once from an ordinary forward."""
    window = session.window(session.middle)
    out = session.model.network(window.voxels)
    masks = mask_logits(out.final.mask_embeddings, out.mask_features.full())
    winner = fuse(out.final.class_logits, masks).argmax(1)[0]
    return out.final.class_logits[0].softmax(-1)[:, :-1], masks[0].sigmoid(), winner


def test_shares_are_the_parts_of_the_fused_score(mixed):
    p, masks, winner = the_long_way(mixed)
    shares = shares_of(mixed.window(mixed.middle).trace())
    assert len(torch.unique(winner)) > 1, "one class everywhere tests nothing"
    assert shares.area.tolist() == (masks > 0.5).sum((1, 2, 3)).tolist()
    for value in range(3):
        inside = winner == value
        assert int(shares.found[value]) == int(inside.sum())
        np.testing.assert_allclose(shares.made[value], (p[:, value, None] * masks[:, inside]).sum(1), rtol=1e-3,
                                   atol=1e-3)


def test_the_inspector_tells_what_the_head_says(mixed):
    p, masks, winner = the_long_way(mixed)
    result = inspect_queries(None, None, session=mixed)
    voxel = mixed.window(mixed.middle).voxel_of(mixed.middle)
    parts = p[:, winner[voxel]] * masks[(slice(None), *voxel)]
    assert result.at_point[0][0] == int(parts.argmax())
    assert result.at_point[0][1] == pytest.approx(float(parts.max() / parts.sum()), abs=1e-4)
    assert result.winner == ["background", "part_1", "part_2"][int(winner[voxel])]
    assert len(result.queries) == 4
    logits = mixed.model.network(mixed.window(mixed.middle).voxels).final.class_logits[0].detach()
    for view in result.queries:
        assert view.classes[0][1] == pytest.approx(float(logits[view.number].softmax(-1).max()), abs=1e-5)
        assert len(view.similar_classes) == 3 and view.number not in [n for n, _ in view.similar_classes]
        cosines = torch.nn.functional.cosine_similarity(logits[view.number], logits, dim=1)
        for number, cosine in view.similar_classes:
            assert cosine == pytest.approx(float(cosines[number]), abs=1e-4)
        assert [c for _, c in view.similar_masks] == sorted((c for _, c in view.similar_masks), reverse=True)
    made = [name for view in result.queries for name in view.made]
    assert sorted(made) == sorted(result.shares)            # every segment was made by one of them
    for makers in result.shares.values():
        assert sum(share for _, share in makers) == pytest.approx(1.0, abs=0.02)
    assert "the answer is" in result.sentences[0]


def test_the_query_of_a_structure_and_of_a_drawing(mixed):
    p, masks, winner = the_long_way(mixed)
    trace = mixed.window(mixed.middle).trace()
    value = int(winner[winner > 0][0])
    number, share = query_of_structure(trace, mixed.model.card, f"part_{value}")
    parts = (p[:, value, None] * masks[:, winner == value]).sum(1)
    assert number == int(parts.argmax()) and share == pytest.approx(float(parts.max() / parts.sum()), abs=1e-3)
    best, dice = query_of_mask(trace, masks[2])
    soft = 2 * (masks * masks[2]).flatten(1).sum(1) / (masks.flatten(1).sum(1) + masks[2].sum())
    assert best == int(soft.argmax()) and dice == pytest.approx(float(soft.max()), abs=1e-3)
    missing = {1, 2} - set(torch.unique(winner).tolist())
    for value in missing:
        with pytest.raises(OptionError, match="finds no"):
            query_of_structure(trace, mixed.model.card, f"part_{value}")


def test_ranks_are_those_of_the_values():
    network = am.RandomVitNet()
    volume = Volume(np.random.default_rng(0).normal(40, 60, (16, 16, 16)).astype(np.float32),
                    np.diag([2.0, 2.0, 2.0, 1.0]))
    session = AttendSession(am.model(network, tile=16), volume)
    for per_head in (False, True):
        wanted = value_matrices(network.vit, session.window(session.middle).voxels, per_head=per_head)
        found = effective_ranks(None, None, session=session, per_head=per_head)
        assert [row.layer for row in found] == [0, 1, 2, 3]
        for row, values in zip(found, wanted):
            assert row.rank == pytest.approx(float(effective_rank(values).mean()), rel=1e-4)
            assert row.limit == (8 if per_head else 24) and sum(row.shares) == pytest.approx(1.0)
    with pytest.raises(ModelError, match="no transformer"):
        effective_ranks(am.model(am.ConvNet()), volume)
    with pytest.raises(ModelError, match="no object queries"):
        inspect_queries(am.model(am.ConvNet()), volume)


class _Scores(BandNetwork):
    """Fixed scores: certain in the first band, fifty-fifty between two classes in the second."""

    def scores(self, x):
        hard = super().scores(x)
        half = torch.tensor([0.0, 0.0, 0.5, 0.5]).reshape(1, 4, 1, 1, 1)
        return torch.where(hard[:, 2:3] > 0, half, hard)


def test_uncertainty_is_the_normalized_entropy_on_the_lattice():
    matrix = lattice((40, 40, 40), (3, 3, 3), np.diag([-1, -1, 1]))
    volume = phantom((40, 40, 40), matrix, [((8, 8, 8), (16, 16, 16), 300), ((20, 20, 20), (28, 28, 28), 600)], noise=1)
    result = uncertainty(make_model(_Scores(), tile=32), volume, device="cpu")
    assert result.entropy.same_lattice(volume) and result.entropy.array.dtype == np.float32
    certain, torn = result.entropy.array[10:14, 10:14, 10:14], result.entropy.array[22:26, 22:26, 22:26]
    np.testing.assert_allclose(torn, math.log(2) / math.log(4), rtol=1e-3)
    assert certain.max() < 1e-3 and result.entropy.array[0:2].max() == 0           # air: nothing was computed
    rows = {row["id"]: row for row in result.structures}
    assert rows["stone"]["voxels"] == 512 and rows["stone"]["confidence"] == pytest.approx(1.0, abs=1e-3)
    assert rows["stone"]["unsure"] == 0 and rows["stone"]["volume_ml"] == pytest.approx(512 * 0.027)
    assert rows["metal"]["confidence"] == pytest.approx(0.5, abs=1e-3)
    assert rows["metal"]["entropy"] == pytest.approx(0.5, abs=1e-3) and "tooth" not in rows
    assert "Least sure of Metal" in result.sentences[1]
    segmented = segment(make_model(_Scores(), tile=32), volume, device="cpu")
    assert {row["id"] for row in segmented.statistics if row["voxels"]} == set(rows)


def test_uncertainty_of_nothing_and_of_a_region():
    matrix = lattice((20, 20, 20), (3, 3, 3))
    air = Volume(np.full((20, 20, 20), -1000, np.int16), matrix, "air", {"modality": "CT"})
    result = uncertainty(make_model(), air, device="cpu")
    assert result.structures == [] and not result.entropy.array.any() and any("no body" in s for s in result.sentences)
    with pytest.raises(OptionError, match="region of interest"):
        uncertainty(make_model(), air, roi=((900, 990), (0, 9), (0, 9)), device="cpu")
    with pytest.raises(InputError, match="no voxels"):
        uncertainty(make_model(), Volume(np.zeros((0, 2, 2)), matrix), device="cpu")
