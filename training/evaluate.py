"""Scores of label maps against the labelled cases: `python -m training.evaluate DATA_FOLDER PREDICTIONS_FOLDER`.

PREDICTIONS_FOLDER holds one label map per case, on the lattice of its image (`NAME.seg.nrrd`, `.nii.gz`, `.nrrd` or
`.mha`). Labels of the development cases count; scores on cases that were trained on are marked so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.reading import read_volume
from HiEndSegLib.geometry.resample import to_ras_axes
from HiEndSegLib.geometry.writing import read_labels
from training.cases import DEVELOPMENT, structure_of
from training.structures import VALUE

IGNORE = 255
# Truth masks of the cases: our structure -> names in labels.json. Where two of ours are drawn as one, both count.
_MERGED = {"stomach_and_duodenum": ("stomach", "duodenum")}
TRAINED = ("ct-abdomen-01", "ct-thorax-01", "ct-abdomen-08")


def dice(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """2 |P and T| / (|P| + |T|) of two bool masks of one shape; voxels where `ignore` holds are left out.

    NaN where both are empty: nothing was to be found and nothing was."""
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of shape {prediction.shape} and {truth.shape} cannot be compared")
    if ignore is not None:
        prediction, truth = prediction & ~ignore, truth & ~ignore
    total = int(prediction.sum()) + int(truth.sum())
    return 2.0 * int((prediction & truth).sum()) / total if total else float("nan")


@dataclass
class Score:
    """One structure of one case. `truth_ml` and `predicted_ml` leave out what the labels do not cover."""

    case: str
    structure: str
    dice: float
    truth_ml: float
    predicted_ml: float
    trained_on: bool
    note: str = ""


def _truth(folder: Path) -> tuple[np.ndarray, dict[str, list[int]], dict[str, tuple[str, ...]]]:
    """Label array (RAS+ axes), the values of each structure that can be scored, and which of ours each one covers."""
    stem = "labels_auto" if (folder / "labels_auto.nii.gz").is_file() else "labels"
    legend = {int(v): n for v, n in json.loads((folder / f"{stem}.json").read_text(encoding="utf-8")).items()}
    values: dict[str, list[int]] = {}
    covers: dict[str, tuple[str, ...]] = {}
    for value, name in legend.items():
        target = name if name in _MERGED else structure_of(name)
        if value in (0, IGNORE) or target == "background":
            continue
        if folder.name == "ct-thorax-01" and target == "vertebrae":
            continue        # only one of the vertebrae in view is labelled
        values.setdefault(target, []).append(value)
        covers[target] = _MERGED.get(target, (target,))
    return to_ras_axes(read_volume(folder / f"{stem}.nii.gz")).array, values, covers


def score_case(folder: Path, prediction: np.ndarray, legend: dict[int, str]) -> list[Score]:
    """Scores of one label map (I, J, K) in RAS+ axes; `legend` maps its values to structure ids."""
    truth, values, covers = _truth(folder)
    if prediction.shape != truth.shape:
        raise InputError(f"The label map of {folder.name} has {prediction.shape} voxels, its image has {truth.shape}; "
                         "segment the image itself.")
    image = to_ras_axes(read_volume(folder / "image.nii.gz"))
    ml = image.voxel_ml
    ignore = truth == IGNORE
    scores = []

    def add(structure: str, found: np.ndarray, real: np.ndarray, left_out: np.ndarray, note: str = "") -> None:
        scores.append(Score(folder.name, structure, dice(found, real, left_out), float((real & ~left_out).sum() * ml),
                            float((found & ~left_out).sum() * ml), folder.name in TRAINED, note))

    for structure, numbers in values.items():
        ids = covers[structure]
        found = np.isin(prediction, [v for v, name in legend.items() if name in ids])
        real = np.isin(truth, numbers)
        add(structure, found, real, ignore)
        if folder.name == "ct-chest-01" and structure.startswith("lung_"):
            # The labels hold aerated lung alone, a model may rightly add vessels and consolidated lung.
            add(structure, found, real, ignore | ((image.array > -400) & ~real), "aerated lung only")
    return scores


def score_development(cache: Path, predict: Callable[[np.ndarray], np.ndarray]) -> dict[str, dict[str, float]]:
    """Quick scores at 3 mm: `predict` turns int16 HU (I, J, K) into label values; {case: {structure: Dice}}."""
    names = {value: name for name, value in VALUE.items()}
    result = {}
    for path in sorted((cache / "dev").glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            image, truth, classes = data["image"], data["labels"], data["classes"]
        found = predict(image)
        result[path.stem] = {names[int(v)]: dice(found == v, truth == v, truth == IGNORE) for v in classes}
    return result


def _prediction(folder: Path, name: str) -> Path | None:
    for extension in (".seg.nrrd", ".nii.gz", ".nrrd", ".mha"):
        if (folder / f"{name}{extension}").is_file():
            return folder / f"{name}{extension}"
    return None


def table(scores: list[Score]) -> str:
    """The scores as lines of text, development cases first."""
    lines = [f"{'case':15s} {'structure':22s} {'Dice':>6s} {'truth ml':>9s} {'found ml':>9s}"]
    for s in sorted(scores, key=lambda s: (s.trained_on, s.case)):
        remark = ", ".join(filter(None, ("trained on" if s.trained_on else "", s.note)))
        lines.append(f"{s.case:15s} {s.structure:22s} {s.dice:6.3f} {s.truth_ml:9.0f} {s.predicted_ml:9.0f}  {remark}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--json", type=Path, help="also write the scores here")
    options = parser.parse_args(arguments)
    scores: list[Score] = []
    for name in (*DEVELOPMENT, *TRAINED):
        path = _prediction(options.predictions, name)
        if path is None or not (options.data / name).is_dir():
            print(f"{name}: no label map in {options.predictions}")
            continue
        labels, legend = read_labels(path)
        meaning = {label.value: label.id for label in legend} or {value: key for key, value in VALUE.items()}
        scores += score_case(options.data / name, to_ras_axes(labels).array, meaning)
    print(table(scores))
    if options.json:
        options.json.write_text(json.dumps([asdict(s) for s in scores], indent=1, allow_nan=True))
    return 0 if scores else 1


if __name__ == "__main__":
    raise SystemExit(main())
