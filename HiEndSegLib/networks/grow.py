"""More classes for a trained network: rows for new classes and queries, everything else as it was.

The old classes' scores stay the same up to normalization; in a MaskMed head the old queries do not listen to the new
ones.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import OptionError
from .build import build_network

#: Kinds whose last layer is a 1x1x1 convolution to classes, and its name.
POINTWISE_LAYERS = {"pointwise": "classifier", "unetr12": "out.conv.conv", "unetr16": "out.conv.conv"}
#: Keyword of the number of classes.
CLASS_KEYS = {"maskmed": "num_classes", "pointwise": "num_classes", "unetr12": "out_channels",
              "unetr16": "out_channels"}
#: What the other queries think of a new class at first, and a new query of the old ones (added to class logits).
UNHEARD = -8.0


def grow(network: nn.Module, config: Mapping[str, Any], seeds: Sequence[int], *,
         generator: torch.Generator | None = None) -> tuple[nn.Module, dict, list[str]]:
    """A copy of the network with `len(seeds)` more classes after the last one; the given one is not touched.

    seeds: for each new class the old class it is to begin as (the one the network sees in its place; 0 for the
    background). Returns the network (on the same device), its configuration and the names of the tensors whose shape
    changed. Raises OptionError for a kind of network that cannot grow.
    """
    kind = config.get("kind")
    if kind not in CLASS_KEYS:
        raise OptionError(f"A network of the kind '{kind}' cannot learn new structures; choose a model of the kind "
                          f"{' or '.join(CLASS_KEYS)}.")
    grown = dict(config)
    grown[CLASS_KEYS[kind]] = int(network.num_classes) + len(seeds)
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    first = next(network.parameters())
    if int(network.num_classes) == 1 and seeds:
        result = _first_classes(grown, state, generator).to(first.device, first.dtype).train(network.training)
        changed = [name for name, tensor in result.state_dict().items() if tensor.shape != state[name].shape]
        return result, grown, changed
    if kind == "maskmed":
        if seeds:
            grown["num_queries"] = network.head.num_queries + len(seeds)
            grown["guests"] = [*network.head.guests, len(seeds)]
        changed = _grow_maskmed(state, list(seeds), generator) if seeds else []
    else:
        changed = _grow_pointwise(state, POINTWISE_LAYERS[kind], list(seeds)) if seeds else []
    with torch.random.fork_rng(devices=[]):             # its random start is overwritten; leave no trace of it
        result = build_network(grown)
    result.load_state_dict(state, strict=True)
    return result.to(first.device, first.dtype).train(network.training), grown, changed


def _first_classes(config: dict, state: dict[str, Tensor], generator: torch.Generator | None) -> nn.Module:
    """From a network that knew the background alone: the last layers start anew, copies of one row would stay alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed() if generator is not None else 0)
        result = build_network(config)
    fresh = result.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if tensor.shape == fresh[name].shape}
    result.load_state_dict(fitting, strict=False)
    return result


def _grow_pointwise(state: dict[str, Tensor], layer: str, seeds: list[int]) -> list[str]:
    """A new class starts a little below the class it is to be told from."""
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    state[f"{layer}.weight"] = torch.cat([weight, weight[seeds]])
    state[f"{layer}.bias"] = torch.cat([bias, bias[seeds] - 1.0])
    return [f"{layer}.weight", f"{layer}.bias"]


def _grow_maskmed(state: dict[str, Tensor], seeds: list[int], generator: torch.Generator | None) -> list[str]:
    """One query for each new class, anywhere among the others and heard by no old class.

    Not a copy of the one that speaks for the seed class: the two would share every weight but their own vectors, give
    one mask, and never part (tried).
    """
    prior, weight, bias = state["head.class_prior"], state["head.class_embed.weight"], state["head.class_embed.bias"]
    queries, classes, new = prior.shape[0], prior.shape[1] - 1, len(seeds)
    sources = [int(prior[:, seed].argmax()) for seed in seeds]
    for name in ("head.query_content", "head.query_position"):
        start = torch.randn(new, state[name].shape[1], generator=generator).to(state[name])
        state[name] = torch.cat([state[name], start])
    # Columns of the new classes come before "no object", the last one.
    state["head.class_embed.weight"] = torch.cat([weight[:classes], weight.new_zeros(new, weight.shape[1]),
                                                  weight[classes:]])
    state["head.class_embed.bias"] = torch.cat([bias[:classes], bias.new_zeros(new), bias[classes:]])
    grown = prior.new_zeros(queries + new, classes + new + 1)
    grown[:queries, :classes], grown[:queries, -1] = prior[:, :classes], prior[:, classes]
    grown[:queries, classes:-1] = UNHEARD
    grown[queries:, :-1] = UNHEARD
    for row, source in enumerate(sources):
        grown[queries + row, classes + row] = 2.0
        grown[queries + row, -1] = prior[source, -1]
    state["head.class_prior"] = grown
    return ["head.query_content", "head.query_position", "head.class_embed.weight", "head.class_embed.bias",
            "head.class_prior"]
