"""What does Adapt gain on another person, and what does it cost the rest? Every case shown.

    python -m training.adaptation DATA OUT                       # all pairs: the default, and adapted in quick mode
    python -m training.adaptation DATA OUT --methods quick full scratch unetr --pairs real-cone-beam
    python -m training.adaptation DATA OUT --looks               # the default on acquisitions it has not seen
    python -m training.adaptation OUT --table                    # the finished runs as Markdown

DATA holds one folder a case and labels-multiorgan-* (expert organ maps). A pair is a person who teaches, others who are
scored, one acquisition for all of them, and the structures that may be ticked; those are ticked that the default
segments below 0.80 on the person who teaches (or all, where the pair says so). Each run is one JSON file in OUT/runs,
written when it is finished; finished ones are skipped. Ways other than "quick" and "encoder" (a model made around the
pretrained encoder alone) get the seconds that "quick" took.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from HiEndSegLib.errors import InputError, OptionError
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.models.encoders import read_encoder
from HiEndSegLib.models.loading import Model, load_model
from HiEndSegLib.models.registry import Registry, shipped_folder
from HiEndSegLib.operations.adapt_recipe import recipe_for

from .adaptation_cases import EXPERT_ORGANS, NEW, Cases
from .adaptation_looks import AS_IS, LOOKS
from .adaptation_run import METHODS, SPEED, Pair, RunConfig, mean, run, score, ticked
from .adaptation_table import looks_table, read_result, read_results, table
from .in_words import in_words, make_folder

_FOUR = ("spleen", "kidney_right", "kidney_left", "liver")
_FAT = tuple(label.id for label in NEW)
PAIRS: tuple[Pair, ...] = (
    Pair("synthetic-cone-beam", "synthetic", "person-13-1", ("person-18-1", "person-50-1", "person-85-1"), "cone-beam",
         EXPERT_ORGANS),
    Pair("real-cone-beam", "real", "ct-abdomen-01", ("ct-abdomen-02", "ct-chest-01"), "cone-beam", _FOUR,
         remark="without contrast medium -> with"),
    Pair("real-planning-ct", "real", "own:ct-abdomen-08", ("ct-abdomen-02", "own:ct-abdomen-09", "own:ct-abdomen-05"),
         "cone-beam", (*EXPERT_ORGANS, "kidney_right"), remark="all with contrast medium but ct-abdomen-09"),
    Pair("new-fat", "new", "fat:ct-abdomen-08", ("ct-abdomen-02+fat", "fat:ct-abdomen-09", "ct-chest-01+fat"), AS_IS,
         _FAT, "all"),
    Pair("synthetic-mr-like", "synthetic", "person-53-1", ("person-28-1", "person-43-1", "person-88-1"), "mr-like",
         EXPERT_ORGANS),
    Pair("real-mr-like", "real", "ct-abdomen-01", ("ct-abdomen-02", "ct-chest-01"), "mr-like", _FOUR,
         remark="without contrast medium -> with"),
    Pair("real-as-is", "real", "ct-abdomen-01", ("ct-abdomen-02", "ct-chest-01"), AS_IS, _FOUR, "all"),
    Pair("real-bowel", "real", "ct-abdomen-08", ("ct-abdomen-01", "ct-abdomen-02", "ct-chest-01"), AS_IS,
         ("small_bowel", "lung_left", "lung_right"), "all", "the default was trained on ct-abdomen-01"),
)
#: Persons on whom acquisitions are chosen; no pair uses them.
CHOICE = ("person-07-0", "person-45-0", "person-66-0")
#: Seconds of one thread, measured, for the estimate: adaptation, a scored case.
SECONDS_EACH = {"quick": 600.0, "full": 600.0, "scratch": 600.0, "unetr": 600.0, "encoder": 2400.0, "default": 0.0}
SECONDS_SCORE = 15.0
#: Ways that begin with a pretrained encoder.
FROM_ENCODER = ("unetr", "encoder")


@dataclass(frozen=True)
class Job:
    """One run and its result. quick: the result of the quick run whose seconds it gets."""

    config: RunConfig
    target: Path
    quick: Path


# --------------------------------------------------------------------------------------------------------------- plan


def plan(args: argparse.Namespace, pairs: Sequence[Pair], model: Model, encoder_sum: str = "") -> list[Job]:
    """Every run in order: pair by pair the default first, then the other ways."""
    chosen = [pair for pair in pairs if not args.pairs or pair.name in args.pairs]
    unknown = set(args.pairs or ()) - {pair.name for pair in pairs}
    if unknown:
        raise OptionError(f"There is no pair {', '.join(sorted(unknown))}; choose from "
                          f"{', '.join(pair.name for pair in pairs)}.")
    about = f"{model.card.key} {model.card.checksum[:12]}"

    def config(pair: Pair, method: str, seed: int) -> RunConfig:
        if method == "default":
            return RunConfig(pair, method, about, 0, args.device, args.threads)
        recipe = json.dumps(recipe_for(SPEED[method], method == "encoder").to_dict()) if method in SPEED else ""
        return RunConfig(pair, method, about, seed, args.device, args.threads, args.seconds, args.steps, args.crop,
                         encoder_sum if method in FROM_ENCODER else "", recipe)

    configs = [(config(pair, method, seed), config(pair, "quick", seed)) for pair in chosen for seed in args.seeds
               for method in METHODS if method in args.methods or method == "default" and seed == args.seeds[0]]
    folder = args.out / "runs"
    return [Job(one, folder / one.file_name, folder / quick.file_name) for one, quick in configs]


def timed(job: Job) -> float | None:
    """The seconds a job may take: told, or those that the same pair's quick run took; None for no limit.

    Raises OptionError: neither is known."""
    config = job.config
    if config.seconds is not None or config.steps is not None or config.method in ("default", "quick", "encoder"):
        return config.seconds
    if not job.quick.is_file():
        raise OptionError(f"{config.method} gets the seconds that quick took on {config.pair.name}, and that is not "
                          "finished; add quick to --methods, or give --seconds.")
    return float(read_result(job.quick)["seconds"]["learning"])


def estimate_minutes(jobs: Sequence[Job]) -> float:
    """Minutes of the jobs left, from runs of the same way that are finished, else from what was measured once."""
    seconds = 0.0
    done: dict[str, list[float]] = {}
    for job in jobs:
        if job.target.is_file():
            result = read_result(job.target)
            done.setdefault(job.config.method, []).append(sum(result["seconds"][k] for k in ("wall", "scoring")))
    for job in jobs:
        if not job.target.is_file():
            config = job.config
            known = done.get(config.method)
            seconds += mean(known) if known else SECONDS_SCORE * len(config.pair.scored) + (
                config.seconds or SECONDS_EACH[config.method] / max(1, config.threads))
    return seconds / 60


# ---------------------------------------------------------------------------------------------------------------- run


def do_all(jobs: Sequence[Job], model: Model, cases: Cases, encoder, tell: Callable[[str], None] = print) -> None:
    """Run what is not finished, in order. The default's run of a pair says what is ticked."""
    before: dict[str, dict] = {}
    for number, job in enumerate(jobs, 1):
        config = job.config
        if job.target.is_file():
            result = read_result(job.target)
        else:
            structures: tuple[str, ...] = ()
            if config.method != "default":
                structures = ticked(config.pair, before[config.pair.name]["scores"][config.pair.taught])
            started = time.monotonic()
            result = run(replace(config, seconds=timed(job)), model, cases, structures, encoder=encoder)
            with atomic_target(job.target) as temporary:
                temporary.write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
            tell(f"{number}/{len(jobs)} {config.pair.name}, {config.method}, seed {config.seed}: "
                 f"{time.monotonic() - started:.0f} s; {json.dumps(result['scores'])}")
        if config.method == "default":
            before[config.pair.name] = result


def survey_looks(model: Model, cases: Cases, out: Path, *, device: str, threads: int,
                 tell: Callable[[str], None] = print) -> None:
    """The default's Dice on CHOICE in every acquisition, in OUT/looks.json: what acquisitions are chosen by."""
    rows = []
    for look in (AS_IS, *LOOKS):
        for name in CHOICE:
            scores = score(model, cases.get(name, look), device=device, threads=threads)
            rows.append({"look": look, "case": name, "scores": {k: scores[k] for k in EXPERT_ORGANS if k in scores}})
            tell(f"{look}, {name}: {mean(list(rows[-1]['scores'].values())):.3f}")
    with atomic_target(out / "looks.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.adaptation", description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DATA OUT", help="data and results (--table: OUT)")
    parser.add_argument("--table", action="store_true", help="print the finished runs as Markdown and run nothing")
    parser.add_argument("--estimate", action="store_true", help="print how long it would take and run nothing")
    parser.add_argument("--looks", action="store_true", help="measure the default on all acquisitions and end")
    parser.add_argument("--pairs", nargs="+", help="names of pairs (default: all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["quick"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="of every way (default: its own)")
    parser.add_argument("--seconds", type=float,
                        help="of every way (default: quick and encoder their own, the others quick's)")
    parser.add_argument("--crop", type=int, default=72, help="voxels, of scratch and UNETR")
    parser.add_argument("--model", help="id or folder (default: the default model)")
    parser.add_argument("--encoder", type=Path,
                        help="encoder folder of unetr and encoder (default: the one that ships)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    if len(args.folders) != (1 if args.table else 2):
        parser.error("name OUT alone with --table, else DATA and OUT")
    args.out = args.folders[-1]
    return args


def read_encoder_of(args: argparse.Namespace) -> tuple[Path | None, str]:
    """The folder of the encoder of `unetr` and `encoder`, and its checksum; None where neither is asked for."""
    if not set(FROM_ENCODER) & set(args.methods):
        return None, ""
    folder = args.encoder or shipped_folder().parent / "Encoders" / "torso-ct-tiny-encoder"
    return folder, read_encoder(folder).weights["sha256"][:12]


@in_words
def main(arguments: Sequence[str] | None = None, pairs: Sequence[Pair] = PAIRS) -> int:
    args = parse(arguments)
    if args.table:
        print("\n\n".join(part for part in (looks_table(args.out), table(read_results(args.out))) if part))
        return 0
    if not args.folders[0].is_dir():
        raise InputError(f"There is no folder {args.folders[0]}; name the one with the cases.")
    model = load_model(Registry().get(args.model))
    encoder, encoder_sum = read_encoder_of(args)
    jobs = plan(args, pairs, model, encoder_sum)
    left = sum(not job.target.is_file() for job in jobs)
    print(f"{len(jobs)} runs, {len(jobs) - left} of them finished; about {estimate_minutes(jobs):.0f} min left",
          flush=True)
    if args.estimate:
        return 0
    make_folder(args.out / "runs")
    cases = Cases(args.folders[0], args.out / "cases", model)
    if args.looks:
        survey_looks(model, cases, args.out, device=args.device, threads=args.threads,
                     tell=lambda s: print(s, flush=True))
        return 0
    do_all(jobs, model, cases, encoder, tell=lambda s: print(s, flush=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
