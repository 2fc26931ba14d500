"""The finished runs of `training.adaptation` as Markdown: every structure of every scored case, and what to know."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from HiEndSegLib.errors import InputError

from .adaptation_cases import BY_ID, NEVER_TRAINED, person_of
from .adaptation_looks import AS_IS, look_sentence
from .adaptation_run import METHODS, TICK_BELOW

TITLES = {"default": "default", "quick": "adapted, quick", "full": "adapted, full",
          "scratch": "its network from scratch", "unetr": "UNETR fine-tuned", "encoder": "from an encoder alone"}
ROSE = 0.10


def read_result(path: Path) -> dict:
    """One finished run. Raises InputError if the file is not one."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        config = result["config"]
        [config["pair"][key] for key in ("name", "protocol", "taught", "scored", "look")]
        config["method"], config["seed"], config["threads"], result["seconds"]["learning"], list(result["structures"])
        [float(v) for of_case in result["scores"].values() for v in of_case.values() if v is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not the result of an adaptation run; remove it and run the protocol "
                         "again.") from error
    return result


def read_results(out: Path) -> list[dict]:
    """Every finished run in OUT/runs; of a pair and way that was run with several recipes, the latest recipe's alone.

    Raises InputError: no run, or a file that is no result.
    """
    paths = sorted((Path(out) / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise InputError(f"There is no finished run in {Path(out) / 'runs'}; run the protocol first.")
    results = [read_result(path) for path in paths]
    latest = {_recipe_key(result): result["config"].get("recipe", "") for result in results}
    return [result for result in results if result["config"].get("recipe", "") == latest[_recipe_key(result)]]


def _recipe_key(result: dict) -> tuple[str, str]:
    return result["config"]["pair"]["name"], result["config"]["method"]


# ---------------------------------------------------------------------------------------------------------- arithmetic


def by_pair(results: Iterable[dict]) -> dict[str, dict[str, list[dict]]]:
    """{pair: {method: its runs, by seed}}, synthetic pairs first."""
    order = {"synthetic": 0, "real": 1, "new": 2}
    pairs: dict[str, dict[str, list[dict]]] = {}
    for result in sorted(results, key=lambda r: (order.get(r["config"]["pair"]["protocol"], 3),
                                                 r["config"]["pair"]["name"], r["config"]["seed"])):
        config = result["config"]
        pairs.setdefault(config["pair"]["name"], {}).setdefault(config["method"], []).append(result)
    return pairs


def dice_of(runs: Sequence[dict], case: str, structure: str) -> float | None:
    """Mean Dice over seeds; None where the runs do not have it. A case that is not known counts as nothing found."""
    values = [run["scores"].get(case, {}).get(structure) for run in runs]
    numbers = [v for v in values if v is not None]
    return statistics.fmean(numbers) if numbers else None


def changes(methods: dict[str, list[dict]], method: str) -> dict[str, list[tuple[float, float]]]:
    """{"taught": [(before, after), ...], "untaught": [...]} over scored cases and structures.

    What the default does not know is at 0 before. Ways that learn the ticked structures alone have no untaught ones.
    """
    runs, before = methods[method], methods.get("default", [])
    structures = runs[0]["structures"]
    found: dict[str, list[tuple[float, float]]] = {"taught": [], "untaught": []}
    for case in runs[0]["config"]["pair"]["scored"]:
        for structure in runs[0]["scores"].get(case, {}):
            after = dice_of(runs, case, structure)
            old = dice_of(before, case, structure)
            if old is None and structure in structures:
                old = 0.0
            if after is not None and old is not None:
                found["taught" if structure in structures else "untaught"].append((old, after))
    return found


def bar(results: Iterable[dict], method: str = "quick") -> dict:
    """Over all pairs: how many taught structures below TICK_BELOW rose by ROSE, how many untaught lost over a point,
    and the new structures' Dice."""
    low, untaught, new = [], [], []
    for methods in by_pair(results).values():
        if method not in methods or "default" not in methods:
            continue
        found = changes(methods, method)
        if methods[method][0]["config"]["pair"]["protocol"] == "new":
            new += [after for _, after in found["taught"]]
        else:
            low += [(a, b) for a, b in found["taught"] if a < TICK_BELOW]
        untaught += found["untaught"]
    return {"low": len(low), "rose": sum(b - a >= ROSE for a, b in low),
            "low_before": _mean([a for a, _ in low]), "low_after": _mean([b for _, b in low]),
            "untaught": len(untaught), "lost": sum(a - b > 0.01 for a, b in untaught),
            "untaught_change": _mean([b - a for a, b in untaught]),
            "new": len(new), "new_reached": sum(v >= 0.70 for v in new), "new_mean": _mean(new)}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


# -------------------------------------------------------------------------------------------------------------- tables


def table(results: Sequence[dict]) -> str:
    """Everything as Markdown."""
    pairs = {name: methods for name, methods in by_pair(results).items() if set(methods) - {"default"}}
    parts = [_bar_sentence(results), _summary(pairs) if pairs else ""]
    parts += [_pair_section(methods) for methods in pairs.values()]
    parts.append("\n".join(f"- {line}" for line in notes(results)))
    return "\n\n".join(part for part in parts if part)


def looks_table(out: Path) -> str:
    """What `--looks` measured, as Markdown: the default in every acquisition; "" where it was not run."""
    path = Path(out) / "looks.json"
    if not path.is_file():
        return ""
    rows = json.loads(path.read_text(encoding="utf-8"))
    looks = list(dict.fromkeys(row["look"] for row in rows))
    names = list(dict.fromkeys(row["case"] for row in rows))
    lines = _header(["acquisition", *names, "mean"])
    for look in looks:
        means = [_mean([v for v in row["scores"].values() if v is not None]) for row in rows if row["look"] == look]
        lines.append(_line([f"{look}: {look_sentence(look)}", *(f"{m:.3f}" for m in means), f"{_mean(means):.3f}"]))
    return "Mean Dice of the default over the expert organs:\n\n" + "\n".join(lines)


def _bar_sentence(results: Sequence[dict]) -> str:
    lines = []
    for method in ("quick", "full"):
        found = bar(results, method)
        if not found["low"] and not found["new"]:
            continue
        parts = []
        if found["low"]:
            parts.append(f"taught structures that the default had below {TICK_BELOW:.2f} on the scored person: "
                         f"{found['low']}, mean {found['low_before']:.3f} -> {found['low_after']:.3f}; {found['rose']} "
                         "of them rose by ten points or more")
        if found["untaught"]:
            parts.append(f"untaught: {found['untaught']}, mean change {100 * found['untaught_change']:+.1f} points; "
                         f"{found['lost']} lost more than one point")
        if found["new"]:
            parts.append(f"new structures: {found['new_reached']} of {found['new']} at 0.70 or more (mean "
                         f"{found['new_mean']:.3f})")
        lines.append(f"**{TITLES[method]}**: " + "; ".join(parts) + ".")
    return "\n\n".join(lines)


def _summary(pairs: dict[str, dict[str, list[dict]]]) -> str:
    lines = _header(["pair", "way", "seeds", "taught, mean Dice", "untaught, mean change", "worst untaught", "seconds",
                     "threads", "steps", "peak GB"])
    for name, methods in pairs.items():
        for method in METHODS:
            if method == "default" or method not in methods:
                continue
            runs, found = methods[method], changes(methods, method)
            before, after = (_mean([pair[k] for pair in found["taught"]]) for k in (0, 1))
            lost = [b - a for a, b in found["untaught"]]
            peak = max(run["report"].get("peak_memory_bytes") or 0 for run in runs)
            lines.append(_line([
                name, TITLES[method], len(runs), f"{before:.3f} -> {after:.3f}",
                f"{100 * _mean(lost):+.1f} ({len(lost)})" if lost else "", f"{100 * min(lost):+.1f}" if lost else "",
                f"{_mean([run['seconds']['learning'] for run in runs]):.0f}", runs[0]["config"]["threads"],
                ", ".join(str(run["report"].get("steps", "")) for run in runs), f"{peak / 1e9:.2f}" if peak else ""]))
    return "\n".join(lines)


def _pair_section(methods: dict[str, list[dict]]) -> str:
    some = next(iter(methods.values()))[0]
    pair = some["config"]["pair"]
    shown = [method for method in METHODS if method in methods]
    learned = next((methods[m][0] for m in shown if m != "default"), some)
    kinds = some.get("kinds", {})
    head = (f"**{pair['name']}**: {_person(pair['taught'], kinds)} teaches "
            f"{', '.join(_name(s) for s in learned['structures']) or 'nothing'}; acquisition: "
            f"{look_sentence(pair['look'])}")
    head = head.rstrip(".") + (f"; {pair['remark']}." if pair.get("remark") else ".")
    lines = _header(["taught structure", "scored on", *(TITLES[m] for m in shown)])
    for case in pair["scored"]:
        for structure in learned["structures"]:
            values = [dice_of(methods[m], case, structure) for m in shown]
            if any(value is not None for value in values[1:]):
                lines.append(_line([_name(structure), _person(case, kinds), *map(_cell, values)]))
    tables = ["\n".join(lines)] if len(lines) > 2 else []
    tables += [_untaught(methods, m) for m in ("quick", "full") if m in methods]
    return "\n\n".join(part for part in (head, *tables, _held_out(methods)) if part)


def _untaught(methods: dict[str, list[dict]], method: str) -> str:
    """Untaught structures, a row each: default -> after, on every scored case."""
    if "default" not in methods:
        return ""
    runs, before, kinds = methods[method], methods["default"], methods[method][0].get("kinds", {})
    scored = runs[0]["config"]["pair"]["scored"]
    lines = _header([f"untaught, {TITLES[method]}", *(_person(case, kinds) for case in scored)])
    for label in BY_ID.values():
        cells = []
        for case in scored:
            old, new = dice_of(before, case, label.id), dice_of(runs, case, label.id)
            cells.append("" if old is None or new is None else f"{old:.3f} -> {new:.3f}")
        if label.id not in runs[0]["structures"] and any(cells):
            lines.append(_line([_name(label.id), *cells]))
    return "\n".join(lines) if len(lines) > 2 else ""


def _held_out(methods: dict[str, list[dict]]) -> str:
    """What adaptation itself said on the tiles it kept out: the honest report beside the other person's truth."""
    said = []
    for method in ("quick", "full", "encoder"):
        for run in methods.get(method, [])[:1]:
            rows = [row for row in run["report"].get("taught", []) if row.get("dice_after") is not None]
            if rows:
                told = ", ".join(f"{_name(r['id'])} {_number(r.get('dice_before'))} -> {_number(r['dice_after'])}"
                                 for r in rows)
                said.append(f"{TITLES[method]}, its own report on what it held out of the taught person: {told}.")
            if run["report"].get("worse"):
                said.append(f"It warned of: {', '.join(_name(s) for s in run['report']['worse'])}.")
    return " ".join(said)


def notes(results: Sequence[dict]) -> list[str]:
    """What a reader has to know, as far as it follows from the results themselves."""
    pairs = [r["config"]["pair"] for r in results]
    scored = {person_of(name) for pair in pairs for name in pair["scored"]}
    lines = ["Dice of the whole scored case on its own lattice, by the label map that `segment` gives. Ticked: "
             f"structures that the default has below {TICK_BELOW:.2f} on the person who teaches (new ones and pairs "
             "without an acquisition: all of the pair's)."]
    lines.append("Seconds are processor seconds where the device is a CPU (the machine was shared), without scoring.")
    if any(pair["protocol"] == "synthetic" for pair in pairs):
        lines.append("person-MAP-N is invented around the expert organ map of that number. The default was trained on "
                     "images of all thirteen maps, in ordinary CT: the acquisition, the body around the organs, their "
                     "position and the random numbers are new to it, the organs' shapes are not. So these rows show "
                     "that one case carries a model over to another acquisition; they do not show unseen anatomy.")
    real = sorted(name for name in scored if not name.startswith("person-"))
    if real:
        never = [name for name in real if name in NEVER_TRAINED]
        trained = [name for name in real if name not in NEVER_TRAINED]
        lines.append(f"Real persons scored: {', '.join(never) or 'none'} never trained on"
                     + (f"; {', '.join(trained)} in the default's training" if trained else "") + ". Their labels are "
                     "semi-automatic and not checked by a clinician, and there is one such person per structure, so "
                     "the spread between patients is not known.")
    if any(name.startswith("own:") for pair in pairs for name in (pair["taught"], *pair["scored"])):
        lines.append("own: the labels are the default's own answer on the same person's CT as it is, uncorrected. A "
                     "score against them says how much of that answer comes back in the other acquisition, not how "
                     "right it is.")
    if any(pair["look"] != AS_IS for pair in pairs):
        lines.append("An acquisition is computed from CT by one rule for all persons of a pair (training/"
                     "adaptation_looks.py): contrasts and noise of another machine, not its physics.")
    if any(pair["protocol"] == "new" for pair in pairs):
        lines.append("Body fat is labelled by thresholds and morphology (training/adaptation_cases.py, `body_fat`; "
                     "auto, not checked by a clinician): intensity decides much of it, so it is an easy new structure.")
    if any(r["config"]["method"] in ("scratch", "unetr") for r in results):
        lines.append("From scratch and UNETR know the taught structures alone, use all slices of the case (nothing is "
                     "held out), learn for the seconds that quick took and draw their crops as adaptation does; their "
                     "last state counts.")
    return lines


# -------------------------------------------------------------------------------------------------------------- pieces


def _person(name: str, kinds: dict[str, str]) -> str:
    plain = person_of(name)
    kind = kinds.get(name)
    return f"{plain} ({kind})" if kind and kind != "drawn" else plain


def _name(structure: str) -> str:
    return structure.replace("_", " ")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _header(cells: Sequence[object]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
