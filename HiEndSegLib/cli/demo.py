"""`hiendseg demo`: the sample CT that ships becomes named organs, a picture and a table.

`make run` calls it with `--page`: where there is a terminal, the page is served with that CT and result afterwards.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ..errors import OutputError
from ..models.registry import Registry
from ..resources import resource
from . import batch
from .console import ProgressLine, duration, say, statistics_table
from .interrupt import Interrupt
from .segment import check_device, make_engine, segment_case

SAMPLE = "Sample/ct-abdomen-09.nii.gz"


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """Segment the sample into the output folder; the exit code. Raises HiEndSegError."""
    card = Registry().verify(options.model, interrupt.token)
    check_device(options.device)
    from ..geometry.reading import find_cases, read_volume

    request = batch.Request(card)
    [target] = batch.targets(find_cases([resource(SAMPLE)]), str(options.output) + "/")
    batch.prepare_folder(target.path.parent)
    picture = target.path.with_name(f"{target.name}.png")
    again = batch.read_record(target.record_path) is not None  # ours: a demonstration may be repeated
    if picture.exists() and not again:
        raise OutputError(f"{picture} exists already and was not made by this program; choose another output.")
    table = batch.Table(str(target.path.parent), overwrite=False)

    say(f"Segmenting {resource(SAMPLE).name} with {card.title} ({card.key})")
    started = time.monotonic()
    line = ProgressLine(1)
    with make_engine(options) as engine:
        line.begin(target.name)
        try:
            result, record = segment_case(engine, target, request, options.device, line, interrupt, overwrite=again)
        finally:
            line.clear()
    table.add(target, record)
    say(f"Done in {duration(time.monotonic() - started)}.")
    for sentence in result.messages:
        say(sentence)
    say()
    say(statistics_table(result.statistics))
    say()
    from ..figures import slices_figure

    slices_figure(read_volume(resource(SAMPLE)), result.labels, result.legend, picture)
    for what, path in (("Segmentation (drag it into 3D Slicer)", target.path), ("Picture", picture),
                       ("Table", table.path), ("Record", target.record_path)):
        say(f"{what + ':':<38} {Path(path).resolve()}")
    say("For research use; not a medical device.")
    if options.page and not options.once and sys.stdin.isatty() and sys.stdout.isatty():
        say()
        return _serve(target)
    return 0


def _serve(target: batch.Target) -> int:
    """The page with the sample and its result, until Ctrl-C."""
    from .app import page_server

    serve = page_server()
    return serve(host="127.0.0.1", port=0, browser=True, say=say,
                 opened=("--file", str(resource(SAMPLE)), "--result", str(Path(target.path).resolve())))
