"""The masked head and the whole network: limits that can be computed by hand, shapes, options."""

import pytest
import torch

from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.mask_head import MaskedMultiScaleHead, fuse, mask_logits
from HiEndSegLib.networks import pyramid
from HiEndSegLib.networks.pyramid import Convolution3, ConvPyramid, depth_to_space, space_to_depth

TINY = dict(num_classes=4, in_channels=2, img_size=24, channels=(8, 8, 16), fsad_dim=12, fsad_heads=2, fsad_depth=1,
            vit=dict(name="vit_tiny_12p", embed_dim=24, depth=4, num_heads=2), taps=(1, 2, 3))
TINY_HEAD = dict(mask_dim=4, head_dim=12, head_heads=2)


def test_folding_is_exact_and_reversible():
    x = torch.randn(2, 3, 4, 6, 8)
    folded = space_to_depth(x)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(depth_to_space(folded), x)
    assert torch.equal(folded[0, :8, 0, 0, 0], x[0, 0, :2, :2, :2].flatten())


@pytest.mark.parametrize("shape", [(16, 15, 14), (13, 14, 15), (1, 4, 5)])
def test_halves_of_a_map_are_the_whole(shape, monkeypatch):
    """The way small maps take on a CPU is the plain convolution, values and gradients alike."""
    torch.manual_seed(0)
    layer, x = Convolution3(3, 5), torch.randn(1, 3, *shape, requires_grad=True)
    towards, results = torch.randn(1, 5, *shape), []
    for bounds in ((0, 0), (1, 1 << 30)):
        monkeypatch.setattr(pyramid, "SMALL_MAP", bounds)
        calls = []
        monkeypatch.setattr(pyramid.F, "conv3d", lambda *a, real=torch.conv3d: calls.append(len(a[0])) or real(*a))
        out = layer(x)
        monkeypatch.undo()
        assert calls == [2 if bounds[1] else 1]
        results.append((out, *torch.autograd.grad((out * towards).sum(), [x, layer.weight, layer.bias])))
    assert out.shape == (1, 5, *shape)
    for one, other in zip(*results):
        assert torch.allclose(one, other, atol=1e-4)


def test_pyramid_strides():
    maps = ConvPyramid(in_channels=1, channels=(8, 16, 24))(torch.randn(1, 1, 16, 24, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 8, 12, 16), (16, 4, 6, 8), (24, 2, 3, 4)]


def test_with_identity_classes_the_head_is_the_pointwise_head():
    """papers: Q = K and class logits forced to the identity leave sigmoid(F . m_k) / sum, channel k for class k."""
    torch.manual_seed(0)
    classes = 5
    features, embeddings = torch.randn(1, 6, 3, 4, 5), torch.randn(1, classes, 6)
    identity = torch.full((1, classes, classes + 1), -1e4)
    identity[0].fill_diagonal_(1e4)
    scores = fuse(identity, mask_logits(embeddings, features))
    pointwise = torch.einsum("cd,dijk->cijk", embeddings[0], features[0]).sigmoid()
    torch.testing.assert_close(scores[0], pointwise / pointwise.sum(0), atol=1e-6, rtol=1e-5)


def test_a_query_that_says_no_object_gives_nothing():
    logits = torch.zeros(1, 2, 4)
    logits[0, 0, 3], logits[0, 1, 1] = 50.0, 50.0           # query 0: no object; query 1: class 1
    scores = fuse(logits, torch.full((1, 2, 2, 2, 2), 30.0))
    assert scores[0, 1].min() == pytest.approx(1.0, abs=1e-4)


def test_scores_sum_to_one_for_every_network_kind():
    x = torch.rand(1, 2, 24, 48, 24)
    for config in ({"kind": "maskmed", **TINY, **TINY_HEAD}, {"kind": "pointwise", "mask_dim": 4, **TINY}):
        network = build_network(config).eval()
        with torch.no_grad():
            scores = network.scores(x)
        assert scores.shape == (1, 4, 24, 48, 24) and scores.min() >= 0
        torch.testing.assert_close(scores.sum(1), torch.ones(1, 24, 48, 24), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_every_finest_value_stride_trains_every_parameter(stride):
    """Nothing in the network is dead: with the zero-initialised weights filled, each parameter gets a gradient."""
    torch.manual_seed(0)
    network = build_network({"kind": "maskmed", **TINY, **TINY_HEAD, "finest_value_stride": stride})
    for parameter in network.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    out = network(torch.rand(1, 2, 24, 24, 24))
    loss = sum(p.class_logits.square().sum() + mask_logits(p.mask_embeddings, out.mask_features.full()).square().mean()
               for p in out.predictions)
    loss.backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert dead == []


def test_predictions_before_the_first_layer_and_after_every_layer():
    network = build_network({"kind": "maskmed", **TINY, **TINY_HEAD, "num_queries": 7, "head_scales": (8, 4, 2),
                             "rounds": 2})
    out = network(torch.rand(2, 2, 24, 24, 24))
    assert len(out.predictions) == 7
    assert out.final.class_logits.shape == (2, 7, 5) and out.final.mask_embeddings.shape == (2, 7, 4)
    assert out.mask_features.full().shape == (2, 4, 24, 24, 24) and out.queries.shape == (2, 7, 12)


def test_a_query_with_an_empty_mask_attends_everywhere():
    head = MaskedMultiScaleHead(num_classes=2, memory_channels=[4], mask_dim=3, embed_dim=12, num_heads=2)
    features = torch.ones(1, 3, 2, 2, 2)
    features[..., 0] = -1
    embeddings = torch.tensor([[[1.0, 1, 1], [0, 0, 0]]])     # query 0: half the map; query 1: nothing
    allowed = head._allowed(embeddings, features)
    assert allowed.shape == (1, 1, 2, 8)
    assert allowed[0, 0, 0].sum() == 4 and allowed[0, 0, 1].all()


def test_fewer_queries_than_classes_and_unknown_options_are_refused():
    with pytest.raises(ValueError, match="num_queries"):
        build_network({"kind": "maskmed", **TINY, **TINY_HEAD, "num_queries": 3})
    with pytest.raises(TypeError):
        build_network({"kind": "maskmed", **TINY, "colour": "red"})
    with pytest.raises(ValueError, match="kind"):
        build_network({"kind": "u-net"})
