"""Does a second taught case undo the first? Two persons teach one after the other, others are scored.

    python -m training.adaptation_sequence DATA OUT            # both sequences; DATA and OUT as in training.adaptation
    python -m training.adaptation_sequence OUT --table         # the finished runs as Markdown

The model first learns from one person, then the result learns from another: once with the first case remembered (its
teaching set, as the program keeps it where a person agrees) and once without. Scored are persons that no lesson shows,
after each lesson. Each sequence is one JSON file in OUT/sequences, written when it is finished; finished ones are
skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from HiEndSegLib.errors import InputError, OptionError
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.models.loading import Model, load_model
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.models.teaching import TeachingCase
from HiEndSegLib.operations.adapt import adapt
from HiEndSegLib.operations.adapt_recipe import RECIPES

from .adaptation_cases import Cases, person_of
from .adaptation_looks import AS_IS
from .adaptation_run import check_teaching, learned_model, score, teaching_legend
from .in_words import in_words, make_folder

#: States of a sequence, in the table's order.
BEFORE, FIRST = "before", "after the first"
WITHOUT, WITH = "after the second alone", "after the second, first remembered"
STATES = (BEFORE, FIRST, WITHOUT, WITH)


@dataclass(frozen=True)
class Lesson:
    """Who teaches what, in which acquisition, and on whom it is scored."""

    taught: str
    structures: tuple[str, ...]
    scored: tuple[str, ...]
    look: str = AS_IS


@dataclass(frozen=True)
class TwoLessons:
    """Two lessons of two persons, neither of whom is scored."""

    name: str
    first: Lesson
    second: Lesson

    def __post_init__(self) -> None:
        teachers = [person_of(lesson.taught) for lesson in (self.first, self.second)]
        scored = {person_of(name) for lesson in (self.first, self.second) for name in lesson.scored}
        if len(set(teachers)) < 2 or scored & set(teachers) or not scored:
            raise OptionError(f"Sequence {self.name}: two different persons teach, and neither of them is scored.")


_FAT = Lesson("fat:ct-abdomen-08", ("subcutaneous_fat",), ("ct-abdomen-02+fat", "ct-chest-01+fat"))
SEQUENCES = (
    TwoLessons("another structure", _FAT,
              Lesson("fat:ct-abdomen-09", ("deep_fat",), ("ct-abdomen-02+fat", "ct-chest-01+fat"))),
    TwoLessons("another acquisition", _FAT,
              Lesson("ct-abdomen-01", ("spleen", "kidney_right", "kidney_left", "liver"), ("ct-abdomen-02",),
                     "mr-like")),
)


def learn(model: Model, cases: Cases, lesson: Lesson, teaching: Sequence[TeachingCase], args: argparse.Namespace
          ) -> tuple[Model, TeachingCase, dict]:
    """What the lesson makes of the model, the case as the next adaptation may meet it again, and the report."""
    case = cases.get(lesson.taught, lesson.look)
    check_teaching(case, lesson.structures)
    adapted = adapt(model, case.volume, case.labels, teaching_legend(case, lesson.structures),
                    structures=list(lesson.structures), device=args.device, speed=args.speed, steps=args.steps,
                    seed=args.seed, threads=args.threads, sides="keep", teaching=teaching)
    report = {"better": adapted.better, "best_step": adapted.report["best_step"],
              "seconds": adapted.report["seconds"], "grey_values": adapted.report["grey_values"],
              "teaching_cases": adapted.report["teaching_cases"], "messages": adapted.messages}
    return learned_model(model, adapted), adapted.teaching_case, report


def run(sequence: TwoLessons, model: Model, cases: Cases, args: argparse.Namespace, firsts: dict[Lesson, tuple],
        tell: Callable[[str], None] = print) -> dict:
    """The whole sequence as plain values: state -> lesson ("first", "second") -> case -> structure -> Dice.

    firsts: what first lessons made of the model, so that sequences which share one learn it once."""
    if args.device == "cpu":
        torch.set_num_threads(args.threads)

    def scores(state: str, learned: Model) -> dict:
        found = {}
        for name in ("first", "second"):
            lesson: Lesson = getattr(sequence, name)
            found[name] = {}
            for scored in lesson.scored:
                values = score(learned, cases.get(scored, lesson.look), device=args.device, threads=args.threads)
                found[name][scored] = {known: values[known] for known in lesson.structures if known in values}
        tell(f"{sequence.name}, {state}: {json.dumps(found)}")
        return found

    result = {"sequence": asdict(sequence), "seed": args.seed, "speed": args.speed, "threads": args.threads,
              "model": f"{model.card.key} {model.card.checksum[:12]}", "scores": {}, "reports": {}}
    result["scores"][BEFORE] = scores(BEFORE, model)
    if sequence.first not in firsts:
        firsts[sequence.first] = learn(model, cases, sequence.first, (), args)
    once, remembered, result["reports"][FIRST] = firsts[sequence.first]
    result["scores"][FIRST] = scores(FIRST, once)
    for state, teaching in ((WITHOUT, ()), (WITH, (remembered,))):
        twice, _, result["reports"][state] = learn(once, cases, sequence.second, teaching, args)
        result["scores"][state] = scores(state, twice)
    return result


def rows(result: dict) -> list[str]:
    """Of the Markdown table: a row per structure and scored person, a column per state."""
    lines = []
    for name in ("first", "second"):
        lesson = result["sequence"][name]
        for structure in lesson["structures"]:
            for scored in lesson["scored"]:
                values = [result["scores"][state][name][scored].get(structure) for state in STATES]
                cells = ["" if value is None else f"{value:.3f}" for value in values]
                lines.append(f"| {result['sequence']['name']} | {name}, {lesson['taught']} ({lesson['look']}) | "
                             f"{structure.replace('_', ' ')} | {scored} | {' | '.join(cells)} |")
    return lines


def table(folder: Path) -> str:
    """The finished sequences of a folder as Markdown. Raises InputError: none, or a file that is none."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise InputError(f"There is no finished sequence in {folder}; run it with DATA OUT first.")
    lines = [f"| sequence | lesson | structure | scored on | {' | '.join(STATES)} |", "|---|---|---|---|" + "---|" * 4]
    for path in paths:
        try:
            lines += rows(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not the result of a sequence; remove it and run the protocol "
                             "again.") from error
    return "\n".join(lines)


def file_name(sequence: TwoLessons, model: Model, args: argparse.Namespace) -> str:
    """Of the result: what changes it changes the name, so that other settings are another run."""
    values = {**asdict(sequence), "model": model.card.checksum, "steps": args.steps, "device": args.device,
              "recipe": RECIPES[args.speed].to_dict()}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return f"{sequence.name.replace(' ', '-')}_{args.speed}_seed{args.seed}_{digest}.json"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.adaptation_sequence",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DATA OUT", help="data and results (--table: OUT)")
    parser.add_argument("--table", action="store_true", help="print the finished runs as Markdown and run nothing")
    parser.add_argument("--names", nargs="+", help="sequences (default: all)")
    parser.add_argument("--speed", choices=("quick", "full"), default="quick")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="id or folder (default: the default model)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    if len(args.folders) != (1 if args.table else 2):
        parser.error("name OUT alone with --table, else DATA and OUT")
    args.out = args.folders[-1] / "sequences"
    return args


@in_words
def main(arguments: Sequence[str] | None = None, sequences: Sequence[TwoLessons] = SEQUENCES) -> int:
    args = parse(arguments)
    if args.table:
        print(table(args.out))
        return 0
    unknown = set(args.names or ()) - {sequence.name for sequence in sequences}
    if unknown:
        raise OptionError(f"There is no sequence {', '.join(sorted(unknown))}; choose from "
                          f"{', '.join(sequence.name for sequence in sequences)}.")
    if not args.folders[0].is_dir():
        raise InputError(f"There is no folder {args.folders[0]}; name the one with the cases.")
    model = load_model(Registry().get(args.model))
    cases = Cases(args.folders[0], args.folders[1] / "cases", model)
    make_folder(args.out)
    firsts: dict[Lesson, tuple] = {}
    for sequence in sequences:
        target = args.out / file_name(sequence, model, args)
        if args.names and sequence.name not in args.names or target.is_file():
            continue
        started = time.monotonic()
        result = run(sequence, model, cases, args, firsts, tell=lambda line: print(line, flush=True))
        with atomic_target(target) as temporary:
            temporary.write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
        print(f"{sequence.name}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
