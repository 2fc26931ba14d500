"""Adapters that merge into plain weights, networks that grow, and networks cut in two."""

import copy

import pytest
import torch
from adapt_phantoms import TINY, untrained
from torch import nn

from HiEndSegLib.errors import OptionError
from HiEndSegLib.networks import low_rank
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.grow import grow
from HiEndSegLib.networks.stages import Stages

X = torch.rand(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
UNETR = dict(kind="unetr12", out_channels=4, img_size=24, patch_size=12, in_channels=1, feature_size=4, hidden_size=12,
             mlp_dim=24, num_layers=4, num_heads=2, skip_indices=[0, 1, 2])


def network(config, seed=0):
    torch.manual_seed(seed)
    return build_network(config).eval()


def taught(net, names, rank=3):
    """Adapters with something in them."""
    generator = torch.Generator().manual_seed(1)
    low_rank.attach(net, names, rank, generator=generator)
    for name, parameter in net.named_parameters():
        if name.endswith(".b"):
            parameter.data.normal_(0, 0.1, generator=generator)


@pytest.mark.parametrize("layer, x", [
    (nn.Linear(5, 7), torch.rand(2, 5)), (nn.Conv3d(3, 4, 3, padding=1), torch.rand(1, 3, 5, 5, 5)),
    (nn.ConvTranspose3d(3, 2, 2, stride=2), torch.rand(1, 3, 4, 4, 4))])
def test_a_new_adapter_changes_nothing_and_a_merged_one_answers_the_same(layer, x):
    net = nn.Sequential(layer)
    plain, weight = net(x), layer.weight.detach().clone()
    low_rank.attach(net, ["0"], 2)
    assert torch.equal(net(x), plain)
    layer.parametrizations.weight[0].b.data.normal_()
    adapted = net(x)
    assert not torch.allclose(adapted, plain)
    a, b = low_rank.factors(net)["0.weight"]
    assert a.shape == (2, weight[0].numel()) and b.shape == (weight.shape[0], 2)
    low_rank.merge(net)
    assert set(net.state_dict()) == {"0.weight", "0.bias"}
    torch.testing.assert_close(net(x), adapted)
    torch.testing.assert_close(layer.weight.data, weight + (b @ a).reshape(weight.shape))


def test_only_the_factors_learn_and_detaching_gives_the_old_weights_back():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    assert low_rank.attach(net, low_rank.adaptable(net, ["0"]), 2) == ["0.weight"]
    net(torch.rand(3, 4)).sum().backward()
    adapter = net[0].parametrizations.weight[0]
    assert adapter.b.grad is not None and net[0].parametrizations.weight.original.grad is None
    adapter.b.data.fill_(1.0)
    low_rank.detach(net)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_adapters_hold_where_a_forward_pass_reads_the_weight_itself():
    """Fused projections and mask features never call the layer."""
    net = network(untrained().card.network)
    plain = net.scores(X)
    taught(net, low_rank.adaptable(net, ["mask_features", "head.layers"]))
    adapted = net.scores(X)
    assert (adapted - plain).abs().max() > 1e-4
    low_rank.merge(net)
    torch.testing.assert_close(net.scores(X), adapted)


def test_the_rank_is_no_larger_than_the_weight():
    net = nn.Sequential(nn.Linear(3, 2))
    low_rank.attach(net, ["0"], 64)
    assert [t.shape for t in low_rank.factors(net)["0.weight"]] == [(2, 3), (2, 2)]


@pytest.mark.parametrize("kind", ["pointwise", "unetr12"])
def test_growing_a_point_wise_head_leaves_old_classes_as_they_were_up_to_normalization(kind):
    config = UNETR if kind == "unetr12" else untrained("pointwise").card.network
    net = network(config)
    grown, new_config, changed = grow(net, config, [0, 2])
    old, new = net.scores(X), grown.scores(X)
    assert new.shape[1] == 6 and grown.num_classes == 6 and len(changed) == 2
    assert (new[:, 4:] > 0).all()
    torch.testing.assert_close(new[:, :4] / new[:, :4].sum(1, keepdim=True), old)
    build_network(new_config).load_state_dict(grown.state_dict())


def test_growing_a_maskmed_head_leaves_what_the_old_queries_say():
    config = dict(untrained().card.network)
    net = network(config)
    grown, new_config, changed = grow(net, config, [1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = net(X), grown(X)
    assert new_config["num_classes"] == 5 and new_config["num_queries"] == 5 and new_config["guests"] == [1]
    for before, after in zip(old.predictions, new.predictions):
        torch.testing.assert_close(after.mask_embeddings[:, :4], before.mask_embeddings)
        torch.testing.assert_close(after.class_logits[:, :4, [0, 1, 2, 3, 5]], before.class_logits)
        assert (after.class_logits[:, :4, 4] < before.class_logits.amax(-1) - 5).all()
    # the new query speaks for the new class, hardly for any other
    assert (new.final.class_logits[0, 4].softmax(-1)[:4] < 0.01).all()
    before, after = net.state_dict(), grown.state_dict()
    assert set(changed) == {name for name in before if before[name].shape != after[name].shape}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in changed)
    # "no object" stays last
    assert torch.equal(after["head.class_embed.weight"][-1], before["head.class_embed.weight"][-1])
    assert torch.equal(after["head.class_prior"][:4, -1], before["head.class_prior"][:, -1])


def test_later_generations_hear_earlier_ones_and_not_the_other_way():
    config = dict(untrained().card.network)
    first, config, _ = grow(network(config), config, [0, 1], generator=torch.Generator().manual_seed(0))
    second, config, _ = grow(first, config, [0], generator=torch.Generator().manual_seed(1))
    assert config["guests"] == [2, 1]
    heard = second.head._heard(torch.device("cpu")).int().tolist()
    assert heard == [[1] * 4 + [0] * 3] * 4 + [[1] * 6 + [0]] * 2 + [[1] * 7]
    with torch.no_grad():
        torch.testing.assert_close(second(X).final.mask_embeddings[:, :6], first(X).final.mask_embeddings)
    with pytest.raises(ValueError, match="guests"):
        build_network({**config, "guests": [0]})


def test_growing_with_more_queries_than_classes_says_so_in_the_configuration():
    config = {**TINY, "num_classes": 3, "num_queries": 6}
    grown, new_config, _ = grow(network(config), config, [0, 0])
    assert new_config["num_queries"] == 8 and grown.head.query_content.shape[0] == 8
    assert grow(network(config), config, [])[2] == []


def test_a_kind_that_cannot_grow_is_refused():
    with pytest.raises(OptionError, match="kind 'bands'"):
        grow(nn.Linear(1, 1), {"kind": "bands"}, [0])
    with pytest.raises(OptionError, match="cannot be adapted"):
        Stages(nn.Linear(1, 1), {"kind": "bands"})


@pytest.mark.parametrize("config", [untrained().card.network, untrained("pointwise").card.network, UNETR,
                                    untrained(finest_value_stride=1).card.network])
def test_front_and_rest_are_the_whole(config):
    net = network(config)
    stages = Stages(net, config)
    with torch.no_grad():
        torch.testing.assert_close(stages.scores(stages.rest(stages.front(X))), net.scores(X))
    parts = (*stages.front_parts, *stages.middle, *stages.last)
    names = [name for name, _ in net.named_parameters()]
    inside = [sum(name == part or name.startswith(part + ".") for part in parts) for name in names]
    assert set(inside) == {1}, [name for name, count in zip(names, inside) if count != 1]
