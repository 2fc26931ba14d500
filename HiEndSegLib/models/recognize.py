"""What a weights file from elsewhere is: looked at by the names and shapes of its tensors, in the engine's process."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ModelError
from ..tasks import CancelToken


def recognize(path: str | os.PathLike, cancel: CancelToken | None = None) -> dict:
    """Plain facts about a PyTorch checkpoint or safetensors file; nothing in it is executed.

    Returns {"kind", "shape", "variant", "bytes", "file"}; kind: "hi-end-mae" (the published pre-training checkpoint
    with its decoder), "encoder" (the same encoder alone), "unetr" (a fine-tuned UNETR of that encoder) or "other".
    shape: the encoder in words, "" where there is none.
    Raises ModelError: missing, damaged, too large, no weights file, or one that holds code.
    """
    from .official import encoder_shape, is_official, unwrap_state
    from .weights import read_checkpoint, read_safetensors

    path = Path(path)
    reader = read_safetensors if path.suffix == ".safetensors" else lambda p: read_checkpoint(p, mmap=True)
    state = unwrap_state(reader(path))
    if cancel is not None:
        cancel.check()
    if "patch_embed.proj.weight" in state:          # an exported encoder has the same names without a prefix
        state = {f"encoder.{key}": value for key, value in state.items()}
    facts = {"kind": "other", "shape": "", "variant": None, "bytes": path.stat().st_size, "file": path.name}
    if is_official(state):
        shape = encoder_shape(state)
        decoder = any(key.startswith("decoder.") for key in state)
        facts.update(kind="hi-end-mae" if decoder else "encoder", shape=str(shape), variant=shape.variant)
    elif any(key.startswith("vit.blocks.") for key in state) and any(key.startswith("encoder1.") for key in state):
        facts["kind"] = "unetr"
    elif not state:
        raise ModelError(f"{path.name} holds no tensor; choose the file with the weights.")
    return facts
