"""Reading the ``config`` of a recording, whose values may be numbers, lists or tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from HiEndSegLib.errors import InputError
from HiEndSegLib.networks.position import as_triple


def need(config: object, name: str, convert: Callable = int) -> Any:
    """One entry, converted; InputError if it is not there. What does not convert is the converter's error."""
    if not isinstance(config, Mapping) or name not in config:
        raise InputError(f"The recording's config has no {name}; record it again.")
    return convert(config[name])


def size(value: object) -> tuple[int, int, int]:
    """One number per axis."""
    value = value.tolist() if isinstance(value, Tensor) else value
    return as_triple(value if isinstance(value, int) else list(value))


def whole_numbers(value: object) -> list[int]:
    return [int(v) for v in (value.tolist() if isinstance(value, Tensor) else value)]
