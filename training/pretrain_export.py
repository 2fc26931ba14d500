"""From a pre-training run to an encoder folder: half-precision weights, an honest description and two pictures.

    python -m training.pretrain_export runs/encoder Resources/Encoders/torso-ct-tiny-encoder --about about.json

ABOUT is a JSON object with the words a person writes once: id, version, title, description, licence, provenance, and
"data", a list of what was trained on with its licences. Numbers (recipe, steps, losses) come from the run itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from HiEndSegLib.errors import HiEndSegError, InputError, ModelError, OutputError
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.models.card import describe_weights
from HiEndSegLib.models.encoders import (
    WEIGHTS_NAME,
    EncoderCard,
    load_encoder_weights,
    read_encoder,
    write_encoder_description,
)
from HiEndSegLib.networks.hi_end_mae import HI_END_MAE_VARIANTS

from . import pretrain_state as state_files
from .pretrain_log import read_table

_WORDS = ("id", "version", "title", "licence", "provenance")
_OPTIONAL = ("description", "data")


def export(run: Path, folder: Path, about: dict, *, checkpoint: Path | None = None) -> EncoderCard:
    """Write `folder` from RUN/last.pt (or another checkpoint of the run). Returns the description as read back.

    Raises ModelError (no or a bad checkpoint), InputError (words missing) and OutputError.
    """
    missing = [name for name in _WORDS if not isinstance(about.get(name), str)]
    unknown = [name for name in about if name not in (*_WORDS, *_OPTIONAL)]
    if missing or unknown:
        raise InputError("The words about the encoder " + (f"lack {', '.join(missing)}" if missing else
                         f"have an entry {unknown[0]!r} that a description does not have") +
                         f"; give {', '.join(_WORDS)} and, if wanted, {' and '.join(_OPTIONAL)}.")
    state = state_files.load(checkpoint or run / state_files.LAST)
    recipe = state["recipe"]
    if recipe.get("variant") not in HI_END_MAE_VARIANTS:
        raise ModelError(f"The checkpoint is of a variant {recipe.get('variant')!r}, which this HiEndSeg does not "
                         f"know; it knows {', '.join(HI_END_MAE_VARIANTS)}.")
    tensors = {name[len("encoder."):]: tensor.detach().to(torch.float16).contiguous()
               for name, tensor in state["network"].items() if name.startswith("encoder.")}
    if not tensors or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelError("The checkpoint's encoder holds values that are not finite in half precision; export an "
                         "earlier checkpoint with --checkpoint.")
    path = folder / WEIGHTS_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_target(path) as temporary:
            temporary.touch()
            readable = temporary.stat().st_mode      # safetensors makes its file private; an encoder is for everybody
            save_file(tensors, temporary)
            temporary.chmod(readable)
    except OSError as error:
        raise OutputError(f"The encoder could not be written to {folder} ({error.strerror or error}); choose another "
                          "folder.") from None
    network = {**HI_END_MAE_VARIANTS[recipe["variant"]]["encoder"], "in_channels": 1}
    training = {"method": "Hi-End-MAE" if recipe["dense_stages"] else "MAE", "step": state["step"],
                "hours": round(float(state.get("seconds", 0.0)) / 3600, 2),
                "recipe": {key: value for key, value in recipe.items() if key not in ("data", "weights")},
                "losses": losses(run, state["step"]), "data": about.get("data", [])}
    card = EncoderCard(
        **{name: about[name] for name in _WORDS}, description=about.get("description", ""),
        variant=recipe["variant"], network=network, modality=recipe["modality"], spacing=recipe["spacing"],
        window=tuple(recipe["window"]) if recipe["modality"] == "CT" else None, crop=recipe["crop"],
        training=training, weights={}, folder=folder)
    write_encoder_description(replace(card, weights=describe_weights(path, "float16")), folder)
    load_encoder_weights(folder)            # what was written is what will be read
    figures(run, folder, state["step"])
    return read_encoder(folder)


def losses(run: Path, step: int) -> dict:
    """Validation loss at the start and the end, and the mean training loss of the last hundred steps."""
    validation = [row for row in read_table(run / "validation.csv") if int(row["step"]) <= step]
    training = [float(row["loss"]) for row in read_table(run / "log.csv") if int(row["step"]) <= step][-100:]
    found: dict = {}
    if training:
        found["training"] = round(float(np.mean(training)), 4)
    if validation:
        found |= {"validation_first": round(float(validation[0]["loss"]), 4),
                  "validation": round(float(validation[-1]["loss"]), 4), "validation_step": int(validation[-1]["step"])}
    return found


def figures(run: Path, folder: Path, step: int) -> None:
    """loss_curve.png, and reconstructions.png from the last pictures of the run, where it has made some."""
    from matplotlib.figure import Figure
    from PIL import Image

    rows = [(int(row["step"]), float(row["loss"])) for row in read_table(run / "log.csv") if int(row["step"]) <= step]
    if rows:
        steps, values = np.array(rows).T
        width = max(1, len(values) // 100)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        figure = Figure(figsize=(6, 3.4), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(steps, values, color="#c8d4e3", linewidth=0.8, label="training, each step")
        axes.plot(steps[len(steps) - len(smooth):], smooth, color="#1f4e79", label=f"training, mean of {width}")
        held = [(int(row["step"]), float(row["loss"])) for row in read_table(run / "validation.csv")
                if int(row["step"]) <= step]
        if held:
            axes.plot(*np.array(held).T, "o-", color="#b3541e", markersize=3, label="held-out volumes")
        axes.set(xlabel="step", ylabel="loss on masked patches")
        axes.legend(frameon=False)
        _write(figure, folder / "loss_curve.png")
    pictures = sorted(run.glob("reconstructions/step-*.png"))
    pictures = [path for path in pictures if int(path.name[5:12]) <= step]
    last = [path for path in pictures if path.name[:12] == pictures[-1].name[:12]]
    if last:
        figure = Figure(figsize=(4.2 * len(last), 4.8), dpi=110, layout="tight")
        for number, path in enumerate(last):
            axes = figure.add_subplot(1, len(last), number + 1)
            with Image.open(path) as image:
                axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
            axes.set_title("original  |  seen by the encoder  |  rebuilt\n" + path.stem[13:], fontsize=9)
            axes.axis("off")
        _write(figure, folder / "reconstructions.png")


def _write(figure, path: Path) -> None:
    with atomic_target(path) as temporary:
        figure.savefig(temporary)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.pretrain_export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--about", type=Path, required=True, help="JSON with the description's words")
    parser.add_argument("--checkpoint", type=Path, help=f"another checkpoint than RUN/{state_files.LAST}")
    options = parser.parse_args(argv)
    try:
        try:
            about = json.loads(options.about.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{options.about} cannot be read as JSON ({error}); write the description's words in "
                             "it.") from None
        if not isinstance(about, dict):
            raise InputError(f"{options.about} holds no JSON object; write the description's words in it.")
        card = export(options.run, options.folder, about, checkpoint=options.checkpoint)
    except HiEndSegError as error:
        print(error.sentence, file=sys.stderr)
        return 2
    steps = card.training["recipe"]["steps"]
    print(f"{card.key}: step {card.training['step']} of {steps}, {card.weights['bytes'] / 1e6:.2f} MB in "
          f"{options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
