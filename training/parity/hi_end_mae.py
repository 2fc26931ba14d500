"""Recordings of Hi-End-MAE's pre-training: activations, losses, reconstruction, gradients, effective ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from HiEndSegLib.errors import HiEndSegError, InputError
from HiEndSegLib.models.official import load_hi_end_mae
from HiEndSegLib.models.weights import read_checkpoint
from HiEndSegLib.networks.effective_rank import effective_rank, value_matrices
from HiEndSegLib.networks.hi_end_mae import HiEndMAE, take_rows
from training.parity.comparison import Comparison, as_tensor
from training.parity.config import need, size, whole_numbers

LOSS = 1e-5  # largest absolute difference of a loss
GRADIENT = 1e-3  # of a gradient's norm, relative
RANK = 1e-4  # of an effective rank, relative: it may reach the number of tokens
_ACTIVATIONS = ("encoder_hidden_states", "encoder_out", "last_projected", "decoder_in", "decoder_norm", "prediction",
                "reconstruction_tokens")
_TABLES = ("encoder_pos_embed", "decoder_pos_embed")
_LISTS = ("decoder_after_self", "decoder_after_cross")
_GRADIENTS = ("grad_norms", "small_grads")
_RANKS = {"effective_rank_v_full": False, "effective_rank_v_per_head": True}
_INPUTS = {"config", "checkpoint", "image", "shuffle_indices", "num_visible"}
_OUTPUTS = (*_ACTIVATIONS, *_LISTS, "stage_kv", "loss", "loss_float64", *_GRADIENTS, *_RANKS)


def matches(recording: dict) -> bool:
    config = recording.get("config")
    return "checkpoint" in recording or (isinstance(config, Mapping) and "decoder_embed_dim" in config)


def compare(recording: dict, weights: Path | None, comparison: Comparison) -> None:
    """Adds one line per recorded tensor; InputError when the network cannot be rebuilt or run."""
    network = _network(recording.get("config"))
    tables = {name: table.clone() for name, table in network.named_buffers() if name in _TABLES}
    _load(network, recording, weights)
    image, shuffle = _inputs(recording, network)
    visible = recording.get("num_visible")
    if visible is not None and as_tensor(visible) != network.num_visible:
        comparison.not_compared("num_visible", f"{visible} were visible, and here {network.num_visible}")
    for name, computed in tables.items():  # the run below takes the recorded ones
        comparison.tensor(name, computed, network.get_buffer(name))
    trace = network.trace(image, shuffle)
    for name in _ACTIVATIONS:
        if recording.get(name) is not None:
            comparison.tensor(name, trace[name], recording[name])
    _stages(comparison, recording.get("stage_kv"), trace["stage_kv"])
    for name in _LISTS:
        _blocks(comparison, name, recording.get(name), trace[name])
    if recording.get("loss") is not None:
        comparison.tensor("loss", trace["loss"], recording["loss"], tolerance=LOSS)
    if any(recording.get(name) is not None for name in _GRADIENTS):
        _gradients(comparison, recording, network, image, shuffle)
    for name, per_head in _RANKS.items():
        if recording.get(name) is not None:
            _ranks(comparison, name, recording[name], network, image, shuffle, per_head)
    if recording.get("loss_float64") is not None:  # last, because it widens the network
        with torch.no_grad():
            loss = network.double()(image.double(), shuffle).loss
        comparison.tensor("loss_float64", loss, recording["loss_float64"], tolerance=LOSS)
    absent = [name for name in _OUTPUTS if recording.get(name) is None]
    if absent:
        comparison.remarks.append(f"not recorded, hence not compared: {', '.join(absent)}")
    for name in recording:
        if name not in _INPUTS and name not in _OUTPUTS:
            comparison.remarks.append(f"the field {name} is not part of this format and was passed over")


def _network(config: object) -> HiEndMAE:
    """The network the configuration describes, without weights."""
    try:
        stages = need(config, "stage_indices", whole_numbers)
        with torch.device("meta"):
            network = HiEndMAE(
                img_size=need(config, "img_size", size), patch_size=need(config, "patch_size", size),
                in_channels=need(config, "in_chans"), embed_dim=need(config, "embed_dim"),
                depth=need(config, "depth"), num_heads=need(config, "num_heads"),
                mlp_ratio=need(config, "mlp_ratio", float), decoder_embed_dim=need(config, "decoder_embed_dim"),
                decoder_num_heads=need(config, "decoder_num_heads"),
                decoder_self_depth=need(config, "decoder_self_depth"),
                dense_stages=need(config, "decoder_cross_depth"), stage_indices=stages,
                mask_ratio=need(config, "mask_ratio", float), norm_eps=need(config, "ln_eps", float))
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:  # the last two: sizes beyond any memory
        raise InputError(f"The recording's config describes no Hi-End-MAE: {error}.") from error
    return network.eval()


def _load(network: HiEndMAE, recording: dict, weights: Path | None) -> None:
    content = recording.get("checkpoint")
    if weights is not None:
        content = read_checkpoint(weights, mmap=True)
    if not isinstance(content, dict):
        raise InputError("The recording has no checkpoint; record it again, or name a file with the weights by "
                         "--weights.")
    try:
        report = load_hi_end_mae(network, content, assign=True)
    except HiEndSegError as error:
        raise InputError(error.sentence) from error
    if not report.complete:
        raise InputError(f"The recorded weights do not fit the network: {report.sentence}")


def _inputs(recording: dict, network: HiEndMAE) -> tuple[Tensor, Tensor]:
    image, shuffle = as_tensor(recording.get("image")), as_tensor(recording.get("shuffle_indices"))
    if image is None or image.dim() != 5:
        raise InputError("The recording has no image (batch, channels, three axes); record it again.")
    wanted = (network.encoder.in_channels, *network.encoder.img_size)
    if tuple(image.shape[1:]) != wanted:
        raise InputError(f"The network of the recording takes images of {wanted}, and its image has "
                         f"{tuple(image.shape[1:])}; record it again.")
    if shuffle is None:
        raise InputError("The recording has no shuffle_indices; record it again.")
    every = torch.arange(network.num_patches).expand(image.shape[0], -1)
    shuffle = shuffle.long()
    if shuffle.shape != every.shape or not torch.equal(shuffle.sort(dim=1).values, every):
        raise InputError(f"The recording's shuffle_indices {tuple(shuffle.shape)} are no permutation of "
                         f"{network.num_patches} patches for each of {image.shape[0]} images; record it again.")
    return image.float(), shuffle


def _stages(comparison: Comparison, recorded: object, ours: Mapping[str, Tensor]) -> None:
    if recorded is None:
        return
    if not isinstance(recorded, Mapping):
        return comparison.not_compared("stage_kv", "it is not a dictionary from encoder blocks to tokens")
    for key, value in recorded.items():
        if str(key) in ours:
            comparison.tensor(f"stage_kv.{key}", ours[str(key)], value)
        else:
            comparison.not_compared(f"stage_kv.{key}", f"the network has {', '.join(ours) or 'no stage'}")


def _blocks(comparison: Comparison, name: str, recorded: object, ours: list[Tensor]) -> None:
    if recorded is None:
        return
    if not isinstance(recorded, (list, tuple, Tensor)):
        return comparison.not_compared(name, "it is not a list with one entry per block")
    if len(recorded) != len(ours):
        return comparison.not_compared(name, f"it has {len(recorded)} entries, and the network {len(ours)} such blocks")
    for number, value in enumerate(recorded):
        comparison.tensor(f"{name}.{number}", ours[number], value)


def _gradients(comparison: Comparison, recording: dict, network: HiEndMAE, image: Tensor, shuffle: Tensor) -> None:
    trained = dict(network.named_parameters())
    gradients = dict(zip(trained, torch.autograd.grad(network(image, shuffle).loss, list(trained.values())),
                         strict=True))
    for name in _GRADIENTS:
        recorded = recording.get(name)
        if recorded is None:
            continue
        if not isinstance(recorded, Mapping):
            comparison.not_compared(name, "it is not a dictionary from weights to gradients")
            continue
        for key, value in recorded.items():
            own = gradients.get(str(key).removeprefix("module."))
            if own is None:
                comparison.not_compared(f"{name}.{key}", "no weight of the network has this name")
                continue
            # Norms of what is summed in another order: in double, as a recording would not keep the rounding.
            own = own.double().norm() if name == "grad_norms" else own
            comparison.tensor(f"{name}.{key}", own, value, tolerance=GRADIENT * _largest(value) + 1e-8)


def _ranks(comparison: Comparison, name: str, recorded: object, network: HiEndMAE, image: Tensor, shuffle: Tensor,
           per_head: bool) -> None:
    """The masked run's values; or those of the whole image, which a recording with the same shape may mean."""
    seen = shuffle[:, :network.num_visible]
    patches = take_rows(network.encoder.patch_embed.patchify(image), seen)
    masked = _rank_table(value_matrices(network.encoder, patches, seen, per_head=per_head))
    recorded, tolerance = as_tensor(recorded), RANK * _largest(recorded)
    if recorded is not None and recorded.shape == masked.shape and not _close(masked, recorded, tolerance):
        whole = _rank_table(value_matrices(network.encoder, image, per_head=per_head))
        if _close(whole, recorded, tolerance):
            comparison.remarks.append(f"{name} was recorded from all patches, not from the visible ones")
            masked = whole
    comparison.tensor(name, masked, recorded, tolerance=tolerance)


def _rank_table(matrices: list[Tensor]) -> Tensor:
    return torch.stack([effective_rank(matrix) for matrix in matrices])


def _close(ours: Tensor, recorded: Tensor, tolerance: float) -> bool:
    return bool((ours - recorded).abs().max() <= tolerance)


def _largest(value: object) -> float:
    tensor = as_tensor(value)
    return 0.0 if tensor is None or tensor.numel() == 0 else float(tensor.double().abs().max())
