"""`hiendseg segment`: every case through the engine, one sentence for each that fails, the others done."""

from __future__ import annotations

import argparse
import math
import os
import re
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import Cancelled, DeviceError, InputError, ModelError, OptionError
from ..models.card import ModelCard
from ..models.registry import Registry
from . import batch
from .console import ProgressLine, complain, duration, say, statistics_table
from .interrupt import Interrupt

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """Segment all cases of the options; the exit code: 0, or 1 when any case failed.

    Raises HiEndSegError for what concerns all cases (model, options, output folder).
    """
    card = Registry().verify(options.model, interrupt.token)
    request = batch.Request(card, only=only_of(options.only, card), roi=roi_of(options.roi), series=options.series)
    check_device(options.device)
    from ..geometry.reading import find_cases

    cases = interrupt.wait_for(find_cases, options.inputs)
    targets = batch.targets(cases, options.output)
    single = batch.is_file_target(options.output)
    batch.prepare_folder(Path(options.output).parent if single else Path(options.output))
    table = batch.Table(options.output, options.overwrite)

    waiting, skipped = [], 0
    for target in targets:
        if not options.overwrite and batch.finished(target, request):
            say(f"{target.name}: finished already, {target.path}")
            skipped += 1
        else:
            waiting.append(target)
    failed: list[tuple[str, str]] = []
    if waiting:
        with make_engine(options) as engine:
            failed = _work(engine, waiting, request, table, options, interrupt)
    if skipped and skipped == len(targets):
        table.write()
    return _summary(targets, skipped, failed, table)


def _work(engine: Any, targets: list[batch.Target], request: batch.Request, table: batch.Table,
          options: argparse.Namespace, interrupt: Interrupt) -> list[tuple[str, str]]:
    """Run the cases one after another; returns (name, sentence) of those that failed."""
    failed = []
    line = ProgressLine(len(targets))
    for number, target in enumerate(targets):
        started = time.monotonic()
        line.begin(target.name)
        try:
            result, record = segment_case(engine, target, request, options.device, line, interrupt, options.overwrite)
            line.end()
            found = sum(1 for row in result.statistics if row["voxels"])
            say(f"{target.name}: {found} structure{'s' * (found != 1)} in {duration(time.monotonic() - started)}, "
                f"{target.path}")
            for sentence in result.messages:
                say(f"  {sentence}")
            if len(targets) == 1:
                say(statistics_table(result.statistics))
            table.add(target, record)
        except (Cancelled, KeyboardInterrupt):
            line.clear()
            raise
        except Exception as error:  # noqa: BLE001 - a batch goes on whatever happens to one case
            line.end()
            if options.debug:
                traceback.print_exc()
            failed.append((target.name, batch.sentence_of(error)))
            complain(f"{target.name}: {failed[-1][1]}")
            if isinstance(error, (DeviceError, ModelError)):  # would be the same for all that follow
                failed += [(rest.name, "Not tried, for the same reason.") for rest in targets[number + 1:]]
                break
    return failed


def segment_case(engine: Any, target: batch.Target, request: batch.Request, device: str, line: ProgressLine,
                 interrupt: Interrupt, overwrite: bool = False) -> tuple[Any, dict]:
    """Read, segment and write one case, with its record. Returns the result and the record.

    Raises HiEndSegError; nothing is half-written then.
    """
    from ..geometry.reading import read_volume
    from ..geometry.writing import write_labels

    batch.check_free(target, overwrite)
    line(0.0, "Reading")
    volume = interrupt.wait_for(read_volume, target.case.path, series=_series(request.series, target.case))
    result = engine.segment(volume, model=str(request.card.folder), device=device, only=request.only, roi=request.roi,
                            progress=line, cancel=interrupt.token)
    interrupt.token.check()
    # What reading changed (tilt, gaps, NaN) belongs to what is said about the result.
    result = replace(result, messages=list(dict.fromkeys([*volume.notes, *result.messages])))
    if result.info.get("tiles", {}).get("run") == 0:  # an empty file would look like a finished case
        raise InputError(" ".join(result.messages) + " Nothing was written; check that this is the right image.")
    line(1.0, "Writing")
    batch.check_free(target, overwrite)  # somebody may have been there meanwhile
    write_labels(result.labels, result.legend, target.path)
    return result, batch.write_record(target, request, result)


def _summary(targets: list[batch.Target], skipped: int, failed: list[tuple[str, str]], table: batch.Table) -> int:
    if len(targets) > 1:
        done = len(targets) - skipped - len(failed)
        say()
        say(f"{done} segmented, {skipped} finished before, {len(failed)} failed.")
        for name, sentence in failed:
            say(f"  {name}: {sentence}")
    if table.path.is_file() and len(failed) < len(targets):
        say(f"Volumes and mean HU: {table.path}")
    return 1 if failed else 0


# ---------------------------------------------------------------------------------------------------- options


def only_of(values: list[str] | None, card: ModelCard) -> list[str] | None:
    """The structure ids of --only, in the card's order; OptionError for one the model does not know."""
    if not values:
        return None
    asked = [name.strip() for value in values for name in value.split(",") if name.strip()]
    known = [label.id for label in card.labels]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise OptionError(f"Model {card.id} has no structure '{', '.join(unknown)}'; it knows: {', '.join(known)}.")
    return [name for name in known if name in asked]


def roi_of(text: str | None) -> tuple | None:
    """--roi R0,R1,A0,A1,S0,S1 in mm, RAS, as three pairs; OptionError when it is anything else."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)):
        raise OptionError(f"The region '{text}' is not six numbers; write --roi R0,R1,A0,A1,S0,S1 in mm, where R, A, S "
                          "grow to the patient's right, front and head.")
    pairs = tuple(zip(numbers[::2], numbers[1::2]))
    for axis, (low, high) in zip("RAS", pairs):
        if not low < high:
            raise OptionError(f"The region is empty along {axis}: {low:g} is not below {high:g}; write the lower value "
                              "first.")
    return pairs


def check_device(name: str) -> None:
    """OptionError for a device name that no machine has."""
    if not _DEVICE.fullmatch(name):
        raise OptionError(f"There is no device '{name}'; choose auto, cuda, cuda:1, mps or cpu.")


def make_engine(options: argparse.Namespace) -> Any:
    """The engine of the options: a worker process, or this process with --in-process."""
    if options.threads is not None:
        if options.threads < 1:
            raise OptionError(f"--threads must be 1 or more, and it is {options.threads}.")
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
            os.environ[name] = str(options.threads)  # read by the worker, or by torch when it is imported here
    if options.in_process:
        from ..engine.local import LocalEngine
        return LocalEngine()
    from ..engine.client import EngineClient
    return EngineClient()


def _series(series: str | None, case: Any) -> str | int | None:
    """--series belongs to DICOM folders; a file in the same batch has none to choose."""
    if series is None or case.kind != "dicom":
        return None
    return int(series) if series.isdigit() else series
