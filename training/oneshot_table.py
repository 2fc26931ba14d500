"""The results of `training.oneshot` as Markdown: mean and spread of every row, paired differences, and what to know.

A run is one labelled case with one seed. The spread is the sample standard deviation over runs, so it holds what the
choice of the labelled case does as well as chance. Differences are taken run by run, between rows that had the same
labelled case, seed, decoder and crops; their spread is the one that a difference has to be held against.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from HiEndSegLib.errors import InputError

from .encoder_rows import kindred, seen
from .oneshot_cases import LABELS_FROM, map_of

_PER_RUN = ("task", "row", "weights", "seed", "steps")


def read_results(folder: Path) -> list[dict]:
    """Every finished run in a folder, in the order of their file names.

    Raises InputError: no such folder, no result in it, or a file that is no result.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the one that the runs were written to.")
    results = [read_result(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise InputError(f"There is no finished run in {folder}; run the protocol first.")
    return results


def read_result(path: Path) -> dict:
    """One finished run. Raises InputError if the file is not one."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        config = result["config"]
        [config["task"][key] for key in ("data", "group", "labelled", "scored", "classes")]
        [config[key] for key in _PER_RUN]
        [float(value) for of_case in result["scores"].values() for value in of_case.values()]
        float(result["mean"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not the result of a one-shot run; remove it and run the protocol "
                         "again.") from error
    return result


# -------------------------------------------------------------------------------------------------------- arithmetic


def mean_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def pairs(results: Iterable[dict], first: str, second: str) -> list[tuple[float, float]]:
    """Mean Dice of rows `first` and `second` for every run that both have."""
    by_run: dict[tuple, dict[str, float]] = {}
    for result in results:
        by_run.setdefault(_run_key(result), {})[row_of(result)] = result["mean"]
    return [(means[first], means[second]) for means in by_run.values() if first in means and second in means]


def paired_difference(results: Iterable[dict], row: str, other: str) -> tuple[float, float | None, int, int] | None:
    """`row` minus `other` run by run: mean, spread, runs in which `row` is better, runs; None without common runs."""
    differences = [a - b for a, b in pairs(results, row, other)]
    if not differences:
        return None
    return (*mean_spread(differences), sum(d > 0 for d in differences), len(differences))


def class_means(results: Iterable[dict]) -> dict[str, float]:
    """Mean Dice of each class over all scored cases of all runs."""
    values: dict[str, list[float]] = {}
    for result in results:
        for of_case in result["scores"].values():
            for name, value in of_case.items():
                values.setdefault(name, []).append(value)
    return {name: statistics.fmean(of_class) for name, of_class in values.items()}


def row_of(result: dict) -> str:
    return result["config"]["row"]


def _run_key(result: dict) -> tuple:
    config = result["config"]
    task = config["task"]
    return (task["data"], task["group"], task["labelled"], tuple(task["scored"]), config["seed"], config["steps"])


# ------------------------------------------------------------------------------------------------------------- tables


def table(results: Sequence[dict]) -> str:
    """All results as Markdown; runs with different settings stand in sections of their own."""
    sections: dict[str, list[dict]] = {}
    for result in _distinguished(results):
        settings = {key: value for key, value in result["config"].items() if key not in _PER_RUN}
        sections.setdefault(json.dumps(settings, sort_keys=True), []).append(result)
    return "\n\n".join(_section(json.loads(settings), runs) for settings, runs in sorted(sections.items()))


def _section(settings: dict, results: list[dict]) -> str:
    rows = rows_of(results)
    parts = [_settings_sentence(settings, results), _summary(results, rows)]
    real = [r for r in results if r["config"]["task"]["data"] == "real"]
    if real:
        parts.append(_directions(real, rows))
    parts += [_classes(group, rows) for _, group in _grouped(results, _group_of)]
    parts.append(notes(results))
    return "\n\n".join(parts)


def _summary(results: list[dict], rows: list[str]) -> str:
    lines = _header(["cases", "steps", "encoder", "runs", "mean Dice", *(f"minus {row}" for row in rows[:-1])])
    for (_, _, steps), group in _grouped(results, _group_of):
        for number, row in enumerate(rows):
            means = [r["mean"] for r in group if row_of(r) == row]
            if means:
                differences = [_difference(group, row, other) if k < number else ""
                               for k, other in enumerate(rows[:-1])]
                lines.append(_line([_title(group[0]), steps, row, len(means), _pm(*mean_spread(means)), *differences]))
    return "\n".join(lines)


def _directions(results: list[dict], rows: list[str]) -> str:
    lines = _header(["labelled", "scored", "steps", "encoder", "seeds", "mean Dice", "pre-training saw"])
    for (_, _, labelled, scored, steps), group in _grouped(results, _direction_of):
        for row in rows:
            runs = [r for r in group if row_of(r) == row]
            if runs:
                lines.append(_line([labelled, ", ".join(scored), steps, row, len(runs),
                                    _pm(*mean_spread([r["mean"] for r in runs])), _saw(runs[0])]))
    return "\n".join(lines)


def _classes(results: list[dict], rows: list[str]) -> str:
    means = {row: class_means(r for r in results if row_of(r) == row) for row in rows}
    classes = list(dict.fromkeys(name for r in results for name in r["config"]["task"]["classes"]))
    lines = _header([f"{_title(results[0])}, {results[0]['config']['steps']} steps", *classes])
    for row in rows:
        if means[row]:
            lines.append(_line([row, *(f"{means[row][c]:.3f}" if c in means[row] else "" for c in classes)]))
    return "\n".join(lines)


def _difference(results: list[dict], row: str, other: str) -> str:
    found = paired_difference(results, row, other)
    if found is None:
        return ""
    mean, spread, better, count = found
    return f"{_pm(mean, spread, sign=True)} (better in {better} of {count})"


def _settings_sentence(settings: dict, results: list[dict]) -> str:
    spacing = results[0].get("spacing")
    where = f" at {spacing[0]:g} mm" if spacing else ""
    decoder = "our token decoder" if settings.get("decoder") == "token" else (
        f"UNETR, feature size {settings['feature_size']}")
    return (f"{decoder}, {settings['variant']}; {settings['crops']} "
            f"crop{'s' if settings['crops'] > 1 else ''} of {settings['crop']}^3{where} a step; AdamW "
            f"{settings['lr']:g}, {settings['precision']}; window {settings['window'][0]:g} to "
            f"{settings['window'][1]:g} HU; sliding window with overlap {settings['overlap']:g}.")


# -------------------------------------------------------------------------------------------------------------- notes


def notes(results: Sequence[dict]) -> str:
    """What a reader has to know, as far as it follows from the results themselves."""
    lines = []
    real = [r for r in results if r["config"]["task"]["data"] == "real"]
    synthetic = [r for r in results if r["config"]["task"]["data"] == "synthetic"]
    if real:
        cases = sorted({name for r in real for name in _cases(r)})
        labelled = {r["config"]["task"]["labelled"] for r in real}
        told = "; ".join(f"{name} {LABELS_FROM.get(name, 'of unknown origin')}" for name in cases)
        lines.append(f"Real: {_count(len(labelled), 'labelled case')} in all, so the spread over cases is hardly "
                     f"known. Labels: {told}. Dice on the lattice of the prepared cases, not of the scans.")
    if synthetic:
        labelled = {map_of(r["config"]["task"]["labelled"]) for r in synthetic}
        scored = {map_of(name) for r in synthetic for name in r["config"]["task"]["scored"]}
        lines.append(f"Synthetic: {_count(len(labelled), 'labelled organ map')}, {len(scored)} scored; a labelled map "
                     "is never scored on images of its own. Organ shapes are drawn by experts, images and all around "
                     "the organs are invented, partly from one volume that all images share: this shows how fast an "
                     "encoder adapts to organs in such images, not how it fares in patients.")
    for row in rows_of(results):
        runs = [r for r in results if row_of(r) == row]
        lines.append(_encoder_note(row, runs))
    first = ("Mean ± sample standard deviation over runs; a run is one labelled case with one seed. Differences are "
             "paired: same labelled case, seed, decoder weights and crops, only the encoder's start differs.")
    return "\n".join(f"- {line}" for line in [first, *lines])


def _encoder_note(row: str, runs: Sequence[dict]) -> str:
    about = runs[0].get("encoder")
    if not about:
        return f"{row}: no pre-training."
    facts = [f"at {about['spacing']:g} mm"]
    if about.get("steps"):
        facts.insert(0, f"{about['steps']} steps")
    if about.get("volumes"):
        facts.append(f"on {about['volumes']} volumes")
    text = f"{row}: {about['title'] or about['id']} ({' '.join(facts)})"
    spacing = runs[0].get("spacing")
    if spacing and abs(about["spacing"] - spacing[0]) > 1e-3:
        text += f"; here the voxels are {spacing[0]:g} mm"
    for role, names in (("labelled", {r["config"]["task"]["labelled"] for r in runs}),
                        ("scored", {name for r in runs for name in r["config"]["task"]["scored"]})):
        known = {name: seen(name, about) for name in names}
        if None in known.values():
            return text + ". Its description does not say which images it was pre-trained on."
        saw = sorted(name for name in names if known[name])
        text += (f"; pre-training saw the images (never the labels) of {len(saw)} of {len(names)} {role} cases"
                 + (f" ({', '.join(saw)})" if 0 < len(saw) <= 4 else ""))
        kin = {map_of(name) for name in names if not known[name] and kindred(name, about)}
        if kin:
            text += f", and other images of {len(kin)} of the {role} maps"
    return text + "."


def _saw(result: dict) -> str:
    about, task = result.get("encoder"), result["config"]["task"]
    if not about:
        return ""
    known = {"labelled": [seen(task["labelled"], about)], "scored": [seen(name, about) for name in task["scored"]]}
    if any(None in answers for answers in known.values()):
        return "not told"
    return " and ".join(role for role, answers in known.items() if any(answers)) or "neither"


# ------------------------------------------------------------------------------------------------------------- pieces


def rows_of(results: Iterable[dict]) -> list[str]:
    """Names of the rows, those without pre-training first, otherwise by name."""
    found = {row_of(r): bool(r.get("encoder")) for r in results}
    return sorted(found, key=lambda row: (found[row], _rank(row), row))


def _rank(row: str) -> int:
    # The paper's order; it also decides which row is subtracted from which.
    known = ("scratch", "random", "MAE", "Hi-End-MAE")
    return known.index(row) if row in known else len(known)


def _distinguished(results: Sequence[dict]) -> list[dict]:
    """Results in which a row's name stands for one encoder: where two share one, their weights' hash is added."""
    weights: dict[str, set[str]] = {}
    for result in results:
        weights.setdefault(row_of(result), set()).add(result["config"]["weights"])
    return [result if len(weights[row_of(result)]) == 1 else
            {**result, "config": {**result["config"], "row": f"{row_of(result)} {result['config']['weights'][:6]}"}}
            for result in results]


def _group_of(result: dict) -> tuple:
    task = result["config"]["task"]
    return task["data"], task["group"], result["config"]["steps"]


def _direction_of(result: dict) -> tuple:
    task = result["config"]["task"]
    return task["data"], task["group"], task["labelled"], tuple(task["scored"]), result["config"]["steps"]


def _grouped(results: Iterable[dict], key: Callable[[dict], tuple]) -> list[tuple[tuple, list[dict]]]:
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return sorted(groups.items(), key=lambda item: item[0])


def _cases(result: dict) -> list[str]:
    task = result["config"]["task"]
    return [task["labelled"], *task["scored"]]


def _title(result: dict) -> str:
    task = result["config"]["task"]
    return f"{task['data']} {task['group']}"


def _pm(mean: float, spread: float | None, *, sign: bool = False) -> str:
    text = f"{mean:+.3f}" if sign else f"{mean:.3f}"
    return text if spread is None or math.isnan(spread) else f"{text} ± {spread:.3f}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _header(cells: Sequence[object]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
