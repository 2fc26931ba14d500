"""`hiendseg models`: list, show, add, remove, verify, export. Works without torch (but for `export --whole`)."""

from __future__ import annotations

import argparse
import importlib.util

from ..errors import Cancelled, HiEndSegError
from ..models.card import ModelCard
from ..models.family import adapted_on, family_order
from ..models.registry import Registry
from .console import say, table
from .interrupt import Interrupt


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """One of the actions; the exit code. Raises HiEndSegError."""
    registry = Registry()
    return {"list": _list, "show": _show, "add": _add, "remove": _remove,
            "verify": _verify, "export": _export}[options.action](registry, options, interrupt)


def _list(registry: Registry, options: argparse.Namespace, interrupt: Interrupt) -> int:
    cards = registry.list()
    rows = [("  " * bool(parent) + card.key, card.title, card.modality, len(card.labels),
             " x ".join(f"{v:g}" for v in card.spacing), f"{card.weights['bytes'] / 1e6:.1f}",
             _whence(registry, card, default=card is cards[0]))
            for card, parent in family_order(cards)]
    if rows:
        say(table(("Model", "Title", "For", "Structures", "Spacing (mm)", "MB", ""), rows, right=(3, 5)))
    else:
        say("No model is installed.")
    say(f"Your own models: {registry.user}")
    for problem in registry.problems:
        say(f"Not usable: {problem}")
    return 0


def _show(registry: Registry, options: argparse.Namespace, interrupt: Interrupt) -> int:
    card = registry.get(options.model)
    unit = card.intensity_unit
    say(f"{card.title} ({card.key}, {_whence(registry, card, default=card in registry.list()[:1])})")
    if card.description:
        say(card.description)
    if card.is_version:
        _show_adaptation(registry, card)
    say()
    network = ", ".join(f"{key} {value}" for key, value in card.network.items() if key != "kind")
    say(table(("", ""), [
        ("Modality", card.modality), ("Spacing", " x ".join(f"{v:g}" for v in card.spacing) + " mm"),
        ("Tile", " x ".join(map(str, card.tile)) + f" voxels, overlap {card.overlap:g}"),
        ("Windows", ", ".join(f"{low:g} to {high:g} {unit}" for low, high in card.windows)),
        *([("Grey values", ", ".join(f"{x:.0f} as {y:.0f}" for x, y in card.curve))] if card.curve else []),
        ("Network", f"{card.network['kind']} ({network})"),
        ("Weights", f"{card.weights['bytes'] / 1e6:.1f} MB, {card.weights['dtype']}, SHA-256 {card.weights['sha256']}"),
        ("Licence", card.licence), ("Provenance", card.provenance), ("Folder", card.folder),
    ]).split("\n", 2)[2])
    say()
    say(table(("Value", "Id", "Name", "Code", "Colour"), [
        (label.value, label.id, label.name, _code(label), "#{:02x}{:02x}{:02x}".format(*label.color))
        for label in card.labels], right=(0,)))
    for title, entries in (("Training", [card.training] if card.training else []), ("Scores", card.scores)):
        if entries:
            say(f"\n{title}")
            for entry in entries:
                for key, value in entry.items():
                    say(f"  {key}: {value}")
    return 0


def _show_adaptation(registry: Registry, card: ModelCard) -> None:
    """Parent, base, and what was measured on the case it learned from."""
    told, parent = card.adaptation, registry.parent_of(card)
    title = told["parent"].get("title") or told["parent"]["id"]
    say(f"Adapted from {told['parent']['id']}@{told['parent']['version']} ({title}) on {adapted_on(card)}"
        f"{'' if parent else '; this parent was removed since, and the version does not need it'}.")
    say(f"Its weights are changes to {told['base']['id']}@{told['base']['version']}, which has to stay installed.")
    for entry in told["report"].get("taught", []):
        before, after = (f"{value:.2f}" if isinstance(value, (int, float)) else "not measured"
                         for value in (entry.get("dice_before"), entry.get("dice_after")))
        say(f"  {entry.get('name') or entry.get('id')}: {before} -> {after} (Dice on slices kept out of training)")
    if registry.versions_of(card):
        say(f"Adapted further: {', '.join(version.key for version in registry.versions_of(card))}")


def _add(registry: Registry, options: argparse.Namespace, interrupt: Interrupt) -> int:
    check = None
    if importlib.util.find_spec("torch"):  # without it the checksum alone is checked
        from ..models.loading import load_model

        def check(card: ModelCard) -> None:
            load_model(card, cancel=interrupt.token)

    card = registry.add(options.path, interrupt.token, check)
    say(f"Added {card.key} ({card.title}) to {card.folder}.")
    return 0


def _remove(registry: Registry, options: argparse.Namespace, interrupt: Interrupt) -> int:
    say(f"Removed {registry.remove(options.model)}.")
    return 0


def _export(registry: Registry, options: argparse.Namespace, interrupt: Interrupt) -> int:
    from ..models.versions import export_version

    card = registry.get(options.model)
    path = export_version(card, options.path, whole=options.whole, overwrite=options.overwrite, cancel=interrupt.token)
    say(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB); 'hiendseg models add' takes it.")
    if card.is_version and not options.whole:
        base = card.adaptation["base"]
        say(f"It holds changes only: whoever adds it needs the model {base['id']}@{base['version']}. "
            "With --whole it works without.")
    elif card.is_version:
        say("It works by itself, without the model it was adapted from.")
    return 0


def _verify(registry: Registry, options: argparse.Namespace, interrupt: Interrupt) -> int:
    if options.model is not None:
        card = registry.verify(options.model, interrupt.token)
        say(f"{card.key}: card and weights are sound.")
        return 0
    problems = []
    for card in registry.list():
        try:
            registry.verify(card.key, interrupt.token)
            say(f"{card.key}: card and weights are sound.")
        except Cancelled:
            raise
        except HiEndSegError as error:
            problems.append(str(error))
    problems += [str(problem) for problem in registry.problems]
    for sentence in dict.fromkeys(problems):
        say(f"Not usable: {sentence}")
    return 1 if problems else 0


def _whence(registry: Registry, card: ModelCard, default: bool) -> str:
    where = "ships with HiEndSeg" if registry.is_shipped(card) else "yours"
    if card.is_version:
        parent = card.adaptation["parent"]
        where += f", adapted from {parent['id']}@{parent['version']} on {adapted_on(card)}"
    return f"{where}, default" if default else where


def _code(label) -> str:
    if not label.terminology:
        return ""
    code = label.terminology["type"]
    modifier = label.terminology.get("modifier")
    return f"{code[0]} {code[1]} {code[2]}" + (f", {modifier[2]}" if modifier else "")
