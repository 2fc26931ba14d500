"""From a card's `network` entry to a module: the only list of network kinds."""

from __future__ import annotations

from typing import Any, Mapping

from torch import nn


def _maskmed(**options: Any) -> nn.Module:
    from .maskmed import MaskMed
    return MaskMed(**options)


def _pointwise(**options: Any) -> nn.Module:
    from .maskmed import PointwiseNet
    return PointwiseNet(**options)


def _unetr12(**options: Any) -> nn.Module:
    from .unetr import UNETR12
    return UNETR12(**options)


def _unetr16(**options: Any) -> nn.Module:
    from .unetr import unetr16
    return unetr16(**options)


KINDS = {"maskmed": _maskmed, "pointwise": _pointwise, "unetr12": _unetr12, "unetr16": _unetr16}


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build `config["kind"]` with the other entries as keywords.

    Raises ValueError for an unknown kind and TypeError for an unknown keyword; the models floor turns both into a
    sentence.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"network kind {kind!r} is not one of {', '.join(sorted(KINDS))}")
    return KINDS[kind](**options)
