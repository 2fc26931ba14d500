"""From a card to a network with its weights, and back: the only place of this floor that needs torch.

Nothing in a model folder is executed. The configuration is tried on torch's "meta" device first, where tensors have
shapes but no memory, and compared with the header of the weight file; memory is taken only when all of it fits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Mapping

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import HiEndSegError, ModelError, OutOfMemoryError, OutputError
from ..geometry.files import atomic_target
from ..tasks import CancelToken
from .card import ModelCard, describe_weights, verify_weights, write_card
from .deltas import from_tensors, merge, merged_shapes
from .registry import Registry
from .weights import read_safetensors

Builder = Callable[[Mapping], nn.Module]
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
WEIGHTS_NAME = "weights.safetensors"


@dataclass(frozen=True)
class Model:
    """A card with its network, in eval mode, on `device`.

    `network.scores(x)`: (B, C, I, J, K) in [0, 1] -> (B, labels + 1, I, J, K), channel v = label value v.
    """

    card: ModelCard
    network: nn.Module
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


def load_model(card: ModelCard, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, *,
               build: Builder | None = None, cancel: CancelToken | None = None,
               registry: Registry | None = None) -> Model:
    """Verify the checksum, build the network and fill it. A version is merged with its base on the way.

    dtype: number type of the parameters (None: float32). build: network builder (None: `networks.build`).
    registry: where a version's base is (None: beside the version and in the usual folders).
    Raises ModelError (altered, does not fit its network, not finite; base deleted or changed) and OutOfMemoryError.
    """
    path = verify_weights(card, cancel)
    build = build or _default_builder()
    shapes, base = _header(card, path), None
    if card.is_version:
        base = find_base_of(card, registry)
        base_shapes = _header(base, verify_weights(base, cancel))
        _refuse_too_large(card, {**shapes, **base_shapes})
        shapes = merged_shapes(shapes, base_shapes, _changes_of(card))
    else:
        _refuse_too_large(card, shapes)
    _check_channels(card, card.network)
    with torch.device("meta"):
        sketch = _build(card, build, may_need_memory=True)
    if sketch is not None:
        _compare(card, _shapes_of(sketch), shapes)
        del sketch
    network = _build(card, build)
    _compare(card, _shapes_of(network), shapes)
    _check_classes(card, network)
    _check_tile(card, network)
    try:
        state = read_state(card, registry, base)
        network.load_state_dict(state, strict=True)
        del state
        network.to(device=device, dtype=dtype or torch.float32)
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(f"Model {card.key} does not fit into the memory of {device}; close other programs that "
                               "use it, or choose the device cpu.") from None
    network.eval().requires_grad_(False)
    return Model(card, network, torch.device(device))


def save_model(card: ModelCard, network: nn.Module | Mapping[str, Tensor], folder: str | os.PathLike, *,
               dtype: str = "float16") -> ModelCard:
    """Write weights and card as a model folder; returns the card with its "weights" entry and folder filled in.

    The weights are written first and the card last, so that a folder with a card is a whole model. An existing
    folder's files are replaced one by one, each whole.

    Raises OutputError (disk, permissions) and ModelError (the card is not valid, weights not finite in `dtype`).
    """
    folder = Path(folder)
    state = network.state_dict() if isinstance(network, nn.Module) else network
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        tensors[name] = (tensor.to(_DTYPES[dtype]) if tensor.is_floating_point() else tensor).clone().contiguous()
    _check_finite(card, tensors)
    path = folder / WEIGHTS_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_target(path) as temporary:
            temporary.touch()
            readable = temporary.stat().st_mode      # safetensors makes its file private; a model is for the whole lab
            save_file(tensors, temporary)
            temporary.chmod(readable)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"The weights {path} could not be written ({error}); free some space or choose another "
                          "folder.") from None
    card = replace(card, weights=describe_weights(path, dtype), folder=folder)
    write_card(card, folder)
    return card


# ---------------------------------------------------------------------------------------------------- the file


def _header(card: ModelCard, path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape from the safetensors header; the library checks that the offsets fit the file."""
    try:
        with safe_open(path, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"The weights of model {card.key} are not a readable safetensors file ({error}); "
                         "get the model again from where it came.") from None


def _refuse_too_large(card: ModelCard, shapes: Mapping[str, tuple[int, ...]]) -> None:
    # float32 parameters and the tensors just read live side by side for a moment.
    need = sum(8 * int(torch.Size(shape).numel()) for shape in shapes.values())
    free = psutil.virtual_memory().available
    if need > free:
        raise OutOfMemoryError(f"Loading model {card.key} needs about {need / 1e9:.1f} GB of memory and "
                               f"{free / 1e9:.1f} GB are free; close other programs or use a smaller model.")


def find_base_of(card: ModelCard, registry: Registry | None = None) -> ModelCard:
    """The base of a version: in `registry`, or beside the version, or in the usual folders. Raises ModelError."""
    if registry is None and card.folder is not None:
        try:
            return Registry(user=card.folder.parent).base_of(card)
        except ModelError:
            pass
    return (registry or Registry()).base_of(card)


def read_state(card: ModelCard, registry: Registry | None = None, base: ModelCard | None = None) -> dict[str, Tensor]:
    """A model's tensors by name, a version's merged with those of its base. Checksums are not looked at again.

    Raises ModelError: damaged, not finite, or changes that do not fit the base.
    """
    tensors = read_safetensors(card.weights_path, none=card.is_version)     # a version may be grey values alone
    _check_finite(card, tensors)
    if not card.is_version:
        return tensors
    base = base or find_base_of(card, registry)
    state = read_state(base)
    delta = from_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in state.items()}, _changes_of(card))
    state = merge(state, delta)
    _check_finite(card, state)                  # two finite factors can have an infinite product
    return state


def _changes_of(card: ModelCard) -> str:
    return f"The weights of version {card.key}"


def _check_finite(card: ModelCard, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"The weights of model {card.key} hold values that are not finite (in {name}); the model "
                             "was damaged in training and cannot be used.")


# ---------------------------------------------------------------------------------------------------- the network


def _default_builder() -> Builder:
    from ..networks.build import build_network
    return build_network


def _build(card: ModelCard, build: Builder, may_need_memory: bool = False) -> nn.Module | None:
    """The network of the card. With `may_need_memory`, None when it cannot be built on the meta device."""
    try:
        return build(card.network)
    except (HiEndSegError, ValueError, TypeError, LookupError, AssertionError, ArithmeticError,
            AttributeError) as error:
        reason = _builder_words(error)
        raise ModelError(f"The network of model {card.key} cannot be built ({reason}); the card was written for "
                         "another version of HiEndSeg or is damaged.") from None
    except (NotImplementedError, RuntimeError) as error:
        if may_need_memory:
            return None  # something in a constructor looks at values, which meta tensors do not have
        raise ModelError(f"The network of model {card.key} cannot be built ({str(error).splitlines()[0]}); the card "
                         "was written for another version of HiEndSeg or is damaged.") from None


def _builder_words(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "unexpected keyword argument" in text:
        return "it has no option " + text.rpartition("argument ")[2]
    return text


def _shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _compare(card: ModelCard, wanted: Mapping[str, tuple], found: Mapping[str, tuple]) -> None:
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    other = sorted(name for name in set(wanted) & set(found) if wanted[name] != found[name])
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing (first: {missing[0]})")
    if extra:
        parts.append(f"{len(extra)} are left over (first: {extra[0]})")
    if other:
        name = other[0]
        parts.append(f"{len(other)} have another shape (first: {name}, {list(found[name])} instead of "
                     f"{list(wanted[name])})")
    if parts:
        raise ModelError(f"The weights of model {card.key} do not fit the network its card describes: "
                         f"{', '.join(parts)}; card and weights are not from the same model.")


def _check_channels(card: ModelCard, network: Mapping) -> None:
    channels = network.get("in_channels", 1)
    if channels != len(card.windows):
        raise ModelError(f"Model {card.key} has {len(card.windows)} intensity windows and a network of {channels} "
                         "input channels; the two must be equal, so correct the card.")


def _check_tile(card: ModelCard, network: nn.Module) -> None:
    size = getattr(network, "img_size", None)  # networks that take any size do not have it
    if size is not None and tuple(size) != card.tile:
        raise ModelError(f"The tile of model {card.key} has {' x '.join(map(str, card.tile))} voxels and its network "
                         f"takes {' x '.join(map(str, size))}; the two must be equal, so correct the card.")


def _check_classes(card: ModelCard, network: nn.Module) -> None:
    classes = getattr(network, "num_classes", None)
    if classes is None:
        classes = card.network.get("num_classes")
    if classes is None:
        raise ModelError(f"The network of model {card.key} does not say how many classes it has; its card needs the "
                         "entry network.num_classes.")
    if int(classes) != len(card.labels) + 1:
        raise ModelError(f"Model {card.key} names {len(card.labels)} structures and its network has {classes} classes "
                         f"with background; there must be {len(card.labels) + 1}, so correct the card.")
