"""Recordings of UNETR on the Hi-End-MAE encoder: logits, tokens, feature maps, attention, class counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from HiEndSegLib.errors import HiEndSegError, InputError
from HiEndSegLib.models.official import is_official, plain_unetr, to_unetr, unwrap_state
from HiEndSegLib.models.weights import read_checkpoint, read_safetensors
from HiEndSegLib.networks.unetr import UNETR12, UNETROutput
from training.parity.comparison import ACTIVATION, Comparison, as_tensor, thin
from training.parity.config import need, size, whole_numbers

_TABLE = "vit.patch_embedding.position_embeddings"
_OUTPUTS = ("logits", "vit_out", "vit_hidden", "features", "attention", "argmax_counts")
_KNOWN = {"config", "state_dict", "image", "logits_stride", *_OUTPUTS}


def matches(recording: dict) -> bool:
    config = recording.get("config")
    return isinstance(config, Mapping) and "hidden_size" in config and "out_channels" in config


@torch.inference_mode()
def compare(recording: dict, weights: Path | None, comparison: Comparison) -> None:
    """Adds one line per recorded tensor; InputError when the network cannot be rebuilt or run."""
    state = _weights(recording, weights)
    network = _network(recording["config"], state, comparison)
    image = as_tensor(recording.get("image"))
    if image is None or image.dim() != 5:
        raise InputError("The recording has no image (batch, channels, three axes); record it again.")
    attention = _by_block(recording.get("attention"), comparison)
    depth = len(network.vit.blocks)
    try:
        ours = network.forward_features(image.float(), attention=[i for i in attention if 0 <= i < depth])
    except (ValueError, RuntimeError) as error:
        raise InputError(f"The network of the recording does not take its image {tuple(image.shape)}: {error}"
                         ) from error
    _outputs(comparison, recording, ours)
    for block, recorded in attention.items():
        if block in ours.attention:
            comparison.tensor(f"attention.{block}", ours.attention[block], recorded)
        else:
            comparison.not_compared(f"attention.{block}", f"the encoder has the blocks 0 to {depth - 1}")
    _counts(comparison, recording, ours.logits)
    for name in recording:
        if name not in _KNOWN:
            comparison.remarks.append(f"the field {name} is not part of this format and was passed over")


def _outputs(comparison: Comparison, recording: dict, ours: UNETROutput) -> None:
    stride = size(recording.get("logits_stride", 1))
    if recording.get("logits") is not None:
        if len(set(stride)) == 1:
            logits = thin(ours.logits, stride[0])
        else:
            logits = ours.logits[..., :: stride[0], :: stride[1], :: stride[2]]
        comparison.tensor("logits", logits, recording["logits"])
    if recording.get("vit_out") is not None:
        comparison.tensor("vit_out", ours.vit_out, recording["vit_out"])
    if recording.get("vit_hidden") is not None:
        hidden = recording["vit_hidden"]
        hidden = as_tensor(list(hidden.values()) if isinstance(hidden, Mapping) else hidden)
        if hidden is not None and hidden.shape != ours.vit_hidden.shape == hidden.transpose(0, 1).shape:
            hidden = hidden.transpose(0, 1)  # stacked behind the batch axis
        comparison.tensor("vit_hidden", ours.vit_hidden, hidden)
    features = recording.get("features")
    if features is None:
        return
    if not isinstance(features, Mapping):
        return comparison.not_compared("features", "it is not a dictionary of feature maps")
    for name, recorded in features.items():
        if recorded is None:
            continue
        if name not in ours.features:
            comparison.not_compared(f"features.{name}", f"the network has {', '.join(ours.features)}")
            continue
        # The format leaves open whether large maps were thinned like the logits.
        comparison.tensor(f"features.{name}", ours.features[name], recorded,
                          strides=range(2, max(ours.features[name].shape[2:]) + 1))


def _counts(comparison: Comparison, recording: dict, logits: Tensor) -> None:
    """Voxels per class after argmax, over the whole batch or per sample, of all voxels or of the recorded ones."""
    recorded = recording.get("argmax_counts")
    if recorded is None:
        return
    classes = logits.shape[1]
    if isinstance(recorded, Mapping):
        try:
            table = torch.zeros(classes, dtype=torch.long)
            for key, value in recorded.items():
                table[int(key)] = int(value)
        except (ValueError, TypeError, IndexError):
            return comparison.not_compared("argmax_counts", f"its keys are not the classes 0 to {classes - 1}")
        recorded = table
    recorded = as_tensor(recorded)
    if recorded is None or recorded.dim() not in (1, 2) or recorded.shape[-1] > classes:
        return comparison.not_compared("argmax_counts", f"it is not one count for each of the {classes} classes")
    recorded = torch.nn.functional.pad(recorded.long(), (0, classes - recorded.shape[-1]))
    stride = size(recording.get("logits_stride", 1))
    for seen in (logits, logits[..., :: stride[0], :: stride[1], :: stride[2]]):
        winners = seen.argmax(dim=1).flatten(1)  # (B, voxels)
        if int(recorded.sum()) == winners.numel():
            break
    else:
        return comparison.not_compared("argmax_counts", f"it counts {int(recorded.sum())} voxels, and the image has "
                                                        f"{logits[:, 0].numel()}")
    counts = torch.stack([torch.bincount(sample, minlength=classes) for sample in winners])
    if recorded.dim() == 1:
        counts = counts.sum(dim=0)
    if counts.shape != recorded.shape:
        return comparison.not_compared("argmax_counts", f"it has the shape {tuple(recorded.shape)}")
    close = 0
    if classes > 1:  # a voxel whose two best classes are this near may fall either way within the tolerance
        best = seen.topk(2, dim=1).values
        close = int(((best[:, 0] - best[:, 1]) <= 2 * ACTIVATION).sum())
    comparison.count("argmax_counts", int((counts - recorded).abs().max()), close)


def _network(config: Mapping, state: dict[str, Tensor], comparison: Comparison) -> UNETR12:
    """The network the configuration describes, with every one of its weights taken from the state."""
    depth = 1 + max((int(key.split(".")[2]) for key in state
                     if key.startswith("vit.blocks.") and key.split(".")[2].isdigit()), default=-1)
    norm = config.get("norm", "instance")
    if norm == "instance" and "encoder1.layer.norm1.weight" in state:
        norm = ("instance", {"affine": True})
    try:
        with torch.device("meta"):
            network = UNETR12(
                img_size=need(config, "img_size", size), patch_size=need(config, "patch_size", size),
                in_channels=need(config, "in_channels"), out_channels=need(config, "out_channels"),
                feature_size=need(config, "feature_size"), hidden_size=need(config, "hidden_size"),
                mlp_dim=need(config, "mlp_dim"), num_heads=need(config, "num_heads"), num_layers=depth,
                ln_eps=need(config, "vit_ln_eps", float), skip_indices=need(config, "skip_indices", whole_numbers),
                qkv_bias="vit.blocks.0.attn.qkv.bias" in state, norm=norm,
                last_step="transposed" if "decoder2.transp_conv.conv.weight" in state else "resize")
    except (ValueError, TypeError) as error:
        raise InputError(f"The recording's config describes no UNETR: {error}.") from error
    target = network.state_dict()
    missing = [key for key in target if key not in state]
    extra = [key for key in state if key not in target]
    wrong = [f"{key} {tuple(state[key].shape)} instead of {tuple(target[key].shape)}"
             for key in target if key in state and state[key].shape != target[key].shape]
    if missing or wrong:
        raise InputError(f"The recorded weights do not fill the network: {len(missing)} missing "
                         f"({', '.join(missing[:3]) or 'none'}), {len(wrong)} of another shape "
                         f"({', '.join(wrong[:3]) or 'none'}); give the file with the rest by --weights.")
    if extra:
        comparison.remarks.append(f"{len(extra)} recorded weights have no place in the network "
                                  f"({', '.join(extra[:4])}) and were passed over")
    network.load_state_dict({key: state[key].to(value.dtype) for key, value in target.items()}, assign=True)
    return network.eval()


def _weights(recording: dict, weights: Path | None) -> dict[str, Tensor]:
    """The recording's own weights, completed from the second file."""
    stored = recording.get("state_dict", {})
    if not isinstance(stored, Mapping):
        raise InputError("The recording's state_dict is not a dictionary of tensors; record it again.")
    own, _ = plain_unetr(_with_prefix(unwrap_state(stored)))
    if weights is not None:
        try:
            content = (read_safetensors(weights) if Path(weights).suffix == ".safetensors"
                       else read_checkpoint(weights, mmap=True))
        except HiEndSegError as error:
            raise InputError(error.sentence) from error
        rest = unwrap_state(content)
        rest = to_unetr(rest)[0] if is_official(rest) else plain_unetr(_with_prefix(rest))[0]
        own = {**rest, **own}
    elif set(own) <= {_TABLE}:
        raise InputError("The recording holds at most the position table; name the file with the other weights "
                         "by --weights.")
    return own


def _with_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A position table stored on its own may have lost the first parts of its name."""
    if len(state) == 1:
        (key, value), = state.items()
        if _TABLE.endswith(key) or key in ("pos_embed", "encoder_pos_embed"):
            return {_TABLE: value}
    return state


def _by_block(attention: object, comparison: Comparison) -> dict[int, object]:
    """Recorded maps by block number, which may have been stored as a number or as text."""
    if attention is None:
        return {}
    if not isinstance(attention, Mapping):
        comparison.not_compared("attention", "it is not a dictionary from block numbers to maps")
        return {}
    maps = {}
    for key, value in attention.items():
        digits = "".join(c for c in str(key) if c.isdigit())
        if value is None:
            continue
        if digits:
            maps[int(digits)] = value
        else:
            comparison.not_compared(f"attention.{key}", "its name holds no block number")
    return maps
