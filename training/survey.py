"""Segment every volume of a folder as a user would, and say how long, how much memory and how well.

    python -m training.survey DATA OUT [--model ID] [--device cpu]

DATA holds one folder a case with image.nii.gz; `training.evaluate` says which have labels that count. Each case runs in
a worker of its own, so that its peak memory is its own. Writes OUT/survey.json, a label map and a picture a case, and
prints two tables. Scores on cases that were trained on are marked.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.errors import HiEndSegError
from HiEndSegLib.figures import slices_figure
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.geometry.reading import read_volume
from HiEndSegLib.geometry.resample import to_ras_axes
from HiEndSegLib.geometry.writing import write_labels
from HiEndSegLib.models.registry import Registry

from .cases import DEVELOPMENT
from .evaluate import TRAINED, score_case


def survey(data: Path, out: Path, *, model: str | None = None, device: str = "auto") -> list[dict]:
    """Rows of name, shape, seconds, peak_gb, found, scores (see `training.evaluate.Score`); failures carry `error`."""
    Registry().verify(model)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for folder in sorted(p for p in data.iterdir() if (p / "image.nii.gz").is_file()):
        row = {"case": folder.name}
        try:
            volume = read_volume(folder / "image.nii.gz")
            began = time.monotonic()
            with EngineClient() as engine:
                result = engine.segment(volume, model=model, device=device)
            row.update(seconds=round(time.monotonic() - began, 1), shape=list(volume.shape),
                       inside=round(sum(result.info["timings"].values()), 1),
                       peak_gb=round(result.info["peak_memory_bytes"] / 1e9, 2), tiles=result.info["tiles"]["run"],
                       messages=result.messages,
                       found=sum(1 for entry in result.statistics if entry["voxels"] > 0))
            if folder.name in (*DEVELOPMENT, *TRAINED):
                legend = {label.value: label.id for label in result.legend}
                row["scores"] = [asdict(s) for s in score_case(folder, to_ras_axes(result.labels).array, legend)]
            write_labels(result.labels, result.legend, out / f"{folder.name}.seg.nrrd")
            slices_figure(volume, result.labels, result.legend, out / f"{folder.name}.png", title=folder.name)
        except HiEndSegError as error:
            row["error"] = error.sentence
        rows.append(row)
        print(json.dumps(row), flush=True)
        (out / "survey.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


def tables(rows: list[dict]) -> str:
    """Two Markdown tables: cost of every case, Dice of every labelled one."""
    lines = ["| case | shape | tiles | seconds (with worker start) | seconds (inside) | peak GB | structures found |",
             "|---|---|---|---|---|---|---|"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['case']} | {row['error']} | | | | | |")
        else:
            lines.append(f"| {row['case']} | {'x'.join(map(str, row['shape']))} | {row['tiles']} | {row['seconds']} | "
                         f"{row['inside']} | {row['peak_gb']} | {row['found']} |")
    lines += ["", "| case | structure | Dice | truth ml | found ml | |", "|---|---|---|---|---|---|"]
    for score in (score for row in rows for score in row.get("scores", ())):
        remark = "; ".join(filter(None, ("trained on" if score["trained_on"] else "", score["note"])))
        lines.append(f"| {score['case']} | {score['structure']} | {score['dice']:.3f} | {score['truth_ml']:.0f} | "
                     f"{score['predicted_ml']:.0f} | {remark} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--about", type=Path, help="JSON for `training.export`, whose scores are replaced by these")
    args = parser.parse_args(argv)
    rows = survey(args.data, args.out, model=args.model, device=args.device)
    print(tables(rows))
    if args.about:
        put_scores(rows, args.about)


def put_scores(rows: list[dict], about: Path) -> None:
    """What a card says was measured is what was measured: the scores of `rows` into the words that become a card."""
    scores = [{"case": s["case"], "structure": s["structure"], "dice": round(s["dice"], 3),
               "trained_on": s["trained_on"], "note": s["note"]} for row in rows for s in row.get("scores", ())]
    with atomic_target(about) as temporary:
        words = {**json.loads(about.read_text(encoding="utf-8")), "scores": scores}
        Path(temporary).write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
