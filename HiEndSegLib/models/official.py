"""Translating the official Hi-End-MAE checkpoint (arXiv 2502.08347, Apache-2.0 code) into our networks.

The translations are pure functions from one state dict to another, the loaders apply them and answer with a report
whose sentence names what was missing or left over. Three traps are handled here and nowhere else:
- keys carry ``module.`` from distributed training;
- the convolution's kernel is ordered (channel, p1, p2, p3), UNETR's linear embedding (p1, p2, p3, channel);
- the position table belongs to one token grid and is resampled for another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from HiEndSegLib.errors import ModelError
from HiEndSegLib.networks.position import resize_position, sincos_position_3d
from HiEndSegLib.networks.vit import VIT_VARIANTS, VisionTransformer3D

_PATCH = "encoder.patch_embed.proj.weight"
_TABLE = "encoder_pos_embed"
# Parts that only pre-training uses.
_PRETRAINING = re.compile(r"(mask_token|decoder_pos_embed|decoder\..*|encoder_to_decoder\..*)$")
# Weights that newer or older MONAI versions store in UNETR's encoder and never use.
_UNUSED_UNETR = re.compile(r"(vit\.blocks\.\d+\.(norm_cross_attn|cross_attn)\..*|vit\.patch_embedding\.cls_token)$")
_UNETR_TABLE = "vit.patch_embedding.position_embeddings"
_UNETR_PATCH = "vit.patch_embedding.patch_embeddings.1.weight"


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint; names are those of the side they belong to."""

    network: str  # what was loaded into, in words
    loaded: tuple[str, ...]  # network keys that were filled
    missing: tuple[str, ...]  # network keys the checkpoint does not have; they keep their start values
    leftover: tuple[str, ...]  # checkpoint keys nobody asked for
    set_aside: tuple[str, ...] = ()  # checkpoint keys that are known and not needed here
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.missing and not self.leftover

    @property
    def sentence(self) -> str:
        """One sentence with counts and names, e.g. for a log or a message box."""
        parts = [f"{len(self.loaded)} tensors were loaded into {self.network}"]
        if self.missing:
            parts.append(f"{len(self.missing)} were missing and keep their initial values ({_summary(self.missing)})")
        if self.leftover:
            parts.append(f"{len(self.leftover)} of the file were left over ({_summary(self.leftover)})")
        if self.complete:
            parts.append("nothing was missing or left over")
        if self.set_aside:
            parts.append(f"{len(self.set_aside)} are not needed here ({_summary(self.set_aside)})")
        return "; ".join([*parts, *self.notes]) + "."


@dataclass(frozen=True)
class EncoderShape:
    """Size of a Hi-End-MAE encoder as its tensors show it (heads leave no trace in them)."""

    width: int
    depth: int
    patch: tuple[int, int, int]
    channels: int

    @property
    def variant(self) -> str | None:
        for name, entry in VIT_VARIANTS.items():
            if (entry["embed_dim"], entry["depth"], (entry["patch_size"],) * 3) == (self.width, self.depth, self.patch):
                return name
        return None

    def __str__(self) -> str:
        name = f" ({self.variant})" if self.variant else ""
        patch = self.patch[0] if len(set(self.patch)) == 1 else "x".join(map(str, self.patch))
        return f"width {self.width}, {self.depth} blocks and patches of {patch}{name}"


def unwrap_state(content: dict) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their plain names: wrapper dictionaries and ``module.`` prefixes removed."""
    for key in ("state_dict", "model_state_dict", "model", "checkpoint"):
        if isinstance(content.get(key), dict):
            return unwrap_state(content[key])
    state = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            while key.startswith("module."):
                key = key[len("module."):]
            state[key] = value
    return state


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether an unwrapped state dict has the official Hi-End-MAE encoder in it."""
    return _PATCH in state


def encoder_shape(state: dict[str, Tensor]) -> EncoderShape:
    """Width, depth, patch and channels of an (unwrapped) official checkpoint.

    Raises:
        ModelError: no Hi-End-MAE encoder in it.
    """
    kernel = state.get(_PATCH)
    if kernel is None or kernel.dim() != 5:
        found = ", ".join(list(state)[:3]) or "no tensor at all"
        raise ModelError(f"This is not a Hi-End-MAE checkpoint: it has no {_PATCH} (it has {found}); "
                         "choose the file published with Hi-End-MAE.")
    return EncoderShape(int(kernel.shape[0]), _depth(state, "encoder.blocks."), tuple(map(int, kernel.shape[2:])),
                        int(kernel.shape[1]))


def to_encoder(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Official state dict -> ``VisionTransformer3D`` keys.

    Returns:
        ``(mapped, set_aside, leftover)``; the position table, if any, is under ``pos_embed``.
    """
    mapped, set_aside, leftover = {}, [], []
    for key, value in state.items():
        if key == _TABLE:
            mapped["pos_embed"] = value
        elif key.startswith("encoder."):
            mapped[key[len("encoder."):]] = value
        else:
            (set_aside if _PRETRAINING.match(key) else leftover).append(key)
    return mapped, set_aside, leftover


def to_unetr(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Official state dict -> keys of UNETR's encoder; returns ``(mapped, set_aside, leftover)``."""
    mapped, set_aside, leftover = {}, [], []
    for key, value in state.items():
        if key == _TABLE:
            mapped[_UNETR_TABLE] = value
        elif key == _PATCH:
            mapped[_UNETR_PATCH] = channel_last_kernel(value)
        elif key == "encoder.patch_embed.proj.bias":
            mapped["vit.patch_embedding.patch_embeddings.1.bias"] = value
        elif key == "encoder.cls_token" or _PRETRAINING.match(key):
            set_aside.append(key)
        elif key.startswith(("encoder.blocks.", "encoder.norm.")):
            name = "vit." + key[len("encoder."):]
            for theirs, ours in ((".attn.proj.", ".attn.out_proj."), (".mlp.fc1.", ".mlp.linear1."),
                                 (".mlp.fc2.", ".mlp.linear2.")):
                name = name.replace(theirs, ours)
            mapped[name] = value
        else:
            leftover.append(key)
    return mapped, set_aside, leftover


def plain_unetr(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """UNETR state dict of any MONAI version -> ``(state, set aside)`` with unused weights and spellings removed."""
    plain, set_aside = {}, []
    for key, value in state.items():
        if _UNUSED_UNETR.match(key):
            set_aside.append(key)
        elif key == "vit.patch_embedding.patch_embeddings.weight":  # the embedding as a convolution
            plain[_UNETR_PATCH] = channel_last_kernel(value)
        elif key == "vit.patch_embedding.patch_embeddings.bias":
            plain["vit.patch_embedding.patch_embeddings.1.bias"] = value
        else:
            plain[key] = value
    return plain, set_aside


def channel_last_kernel(kernel: Tensor) -> Tensor:
    """Patch convolution ``(D, C, p1, p2, p3)`` -> linear ``(D, p1 p2 p3 C)`` for patches with the channel last."""
    return kernel.permute(0, 2, 3, 4, 1).reshape(kernel.shape[0], -1)


def fit_channels(kernel: Tensor, channels: int) -> Tensor:
    """A one-channel patch kernel ``(D, 1, ...)`` spread evenly over several input channels (its sum is kept)."""
    if kernel.shape[1] == channels:
        return kernel
    if kernel.shape[1] != 1:
        raise ModelError(f"The checkpoint's patch embedding has {kernel.shape[1]} input channels and the network "
                         f"{channels}; build the network with in_channels={kernel.shape[1]}.")
    return kernel.expand(-1, channels, -1, -1, -1) / channels


def fit_table(table: Tensor, grid: Sequence[int]) -> tuple[Tensor, str | None]:
    """A position table ``(1, N, D)`` for another token grid, and a note when it had to be resampled.

    A table with as many rows as the grid has cells is taken as it is; any other must come from a cube.
    """
    rows, grid = int(table.shape[1]), tuple(grid)
    if rows == math.prod(grid):
        return table, None
    edge = round(rows ** (1 / 3))
    if edge**3 != rows:
        raise ModelError(f"The checkpoint's position table has {rows} rows, which is no cube, and the network's token "
                         f"grid is {'x'.join(map(str, grid))}; build the network with the checkpoint's image size.")
    return (resize_position(table, edge, grid),
            f"the position table was resampled from {edge}x{edge}x{edge} to {'x'.join(map(str, grid))}")


def load_encoder(encoder: VisionTransformer3D, content: dict, *, assign: bool = False) -> LoadReport:
    """Fill an encoder from an official checkpoint.

    Args:
        content: as `weights.read_checkpoint` returns it.
        assign: put the checkpoint's tensors in place instead of copying (for a network on the meta device).

    Raises:
        ModelError: no Hi-End-MAE checkpoint, another variant, or a trained position table for a fixed one.
    """
    state = unwrap_state(content)
    shape = encoder_shape(state)
    _same_variant(shape, EncoderShape(encoder.embed_dim, encoder.depth, encoder.patch_size, encoder.in_channels))
    mapped, set_aside, leftover = to_encoder(state)
    notes = []
    if shape.channels != encoder.in_channels:
        mapped["patch_embed.proj.weight"] = fit_channels(mapped["patch_embed.proj.weight"], encoder.in_channels)
        notes.append(f"its single input channel was spread evenly over {encoder.in_channels}")
    if encoder.cls_token is None and mapped.pop("cls_token", None) is not None:
        set_aside.append("encoder.cls_token")
    table = mapped.get("pos_embed")
    if table is not None and encoder.learned_position:
        mapped["pos_embed"], note = fit_table(table, encoder.grid)
        notes += [note] if note else []
    elif table is not None:
        del mapped["pos_embed"]
        set_aside.append(_TABLE)
        edge = round(table.shape[1] ** (1 / 3))
        if edge**3 != table.shape[1]:
            edge = encoder.grid
        fixed = sincos_position_3d(edge, encoder.embed_dim)
        if fixed.shape != table.shape or not torch.allclose(fixed, table.float(), atol=1e-4, rtol=0):
            raise ModelError("The checkpoint's position table was trained and the encoder computes a fixed one; "
                             "build the encoder with learned_position=True.")
    return _load(encoder, mapped, "the encoder", set_aside, leftover, notes, assign)


def load_hi_end_mae(network: nn.Module, content: dict, *, assign: bool = False) -> LoadReport:
    """Fill a whole pre-training network (`HiEndMAE`) from an official checkpoint: encoder, decoder, position tables.

    Raises:
        ModelError: no Hi-End-MAE checkpoint, or one of another size.
    """
    state, encoder = unwrap_state(content), network.encoder
    _same_variant(encoder_shape(state),
                  EncoderShape(encoder.embed_dim, encoder.depth, encoder.patch_size, encoder.in_channels))
    return _load(network, state, "Hi-End-MAE", (), (), (), assign)


def load_unetr(network: nn.Module, content: dict, *, assign: bool = False) -> LoadReport:
    """Fill a UNETR (`UNETR12`, or MONAI's own) from an official pre-training checkpoint or from UNETR weights.

    Raises:
        ModelError: nothing of UNETR in the file, or another variant.
    """
    state = unwrap_state(content)
    target = network.state_dict()
    grid, patch = unetr_grid(network)
    notes, leftover = [], []
    if is_official(state):
        shape = encoder_shape(state)
        width = int(target[_UNETR_PATCH].shape[0])
        channels = int(target[_UNETR_PATCH].shape[1]) // math.prod(patch)
        _same_variant(shape, EncoderShape(width, _depth(target, "vit.blocks."), patch, channels))
        if shape.channels != channels:
            state = {**state, _PATCH: fit_channels(state[_PATCH], channels)}
            notes.append(f"its single input channel was spread evenly over {channels}")
        mapped, set_aside, leftover = to_unetr(state)
    else:
        mapped, set_aside = plain_unetr(state)
        if not any(key in target for key in mapped):
            raise ModelError(f"The file has no UNETR weights (it has {', '.join(list(state)[:3]) or 'no tensor'}); "
                             "choose a Hi-End-MAE checkpoint or a fine-tuned UNETR.")
    if _UNETR_TABLE in mapped:
        mapped[_UNETR_TABLE], note = fit_table(mapped[_UNETR_TABLE], grid)
        notes += [note] if note else []
    return _load(network, mapped, "UNETR", set_aside, leftover, notes, assign)


def _load(network: nn.Module, mapped: dict[str, Tensor], name: str, set_aside: Iterable[str], leftover: Iterable[str],
          notes: Iterable[str], assign: bool) -> LoadReport:
    target = network.state_dict()
    wanted = [key for key in target if not _UNUSED_UNETR.match(key)]
    fitting = {key: value for key, value in mapped.items() if key in target}
    for key, value in fitting.items():
        if value.shape != target[key].shape:
            raise ModelError(f"{key} has the shape {tuple(value.shape)} in the checkpoint and "
                             f"{tuple(target[key].shape)} in {name}; build the network with the sizes "
                             "the checkpoint was trained with.")
    if assign:
        fitting = {key: value.to(target[key].dtype).contiguous() for key, value in fitting.items()}
    network.load_state_dict(fitting, strict=False, assign=assign)
    return LoadReport(name, tuple(fitting), tuple(key for key in wanted if key not in fitting),
                      (*leftover, *(key for key in mapped if key not in target)), tuple(set_aside), tuple(notes))


def _same_variant(theirs: EncoderShape, ours: EncoderShape) -> None:
    if (theirs.width, theirs.depth, theirs.patch) != (ours.width, ours.depth, ours.patch):
        advice = f"build {theirs.variant}" if theirs.variant else "build the network with the checkpoint's sizes"
        raise ModelError(f"The checkpoint holds an encoder with {theirs}, and this network has {ours}; {advice}.")


def unetr_grid(network: nn.Module) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Token grid and patch of our UNETR or MONAI's (which calls its grid feat_size)."""
    grid = network.feat_size if hasattr(network, "feat_size") else network.vit.patch_embedding.grid
    return tuple(map(int, grid)), tuple(map(int, network.patch_size))


def _depth(state: Iterable[str], prefix: str) -> int:
    numbers = [int(key[len(prefix):].split(".")[0]) for key in state
               if key.startswith(prefix) and key[len(prefix):].split(".")[0].isdigit()]
    return max(numbers, default=-1) + 1


def _summary(keys: Sequence[str], limit: int = 4) -> str:
    """Few names in full; many by their first part with a count: ``encoder1 6, encoder2 17``."""
    if len(keys) <= limit:
        return ", ".join(keys)
    groups: dict[str, int] = {}
    for key in keys:
        parts = key.split(".")
        head = ".".join(parts[:3]) if len(parts) > 2 and parts[1] == "blocks" else parts[0]
        groups[head] = groups.get(head, 0) + 1
    shown = [f"{head} {count}" if count > 1 else head for head, count in groups.items()]
    return ", ".join(shown[:14]) + (f" and {len(shown) - 14} more parts" if len(shown) > 14 else "")
