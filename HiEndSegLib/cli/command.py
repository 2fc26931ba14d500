"""Arguments, exit codes and the last line of defence of `hiendseg`.

Exit codes: 0 all good; 1 a case or check failed; 2 the command itself cannot be carried out (options, model, output);
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from typing import Sequence

from .. import __version__
from ..errors import Cancelled, HiEndSegError
from .console import complain
from .interrupt import Interrupt

STOPPED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a code page that lacks a letter must not end a batch
            stream.reconfigure(errors="replace")
    options = parser().parse_args(_join_roi(sys.argv[1:] if argv is None else argv))
    with Interrupt() as interrupt:
        try:
            code = importlib.import_module(f".{options.command}", __package__).run(options, interrupt)
        except (Cancelled, KeyboardInterrupt):
            complain("Stopped; nothing was kept." if options.command == "adapt" else
                     "Stopped; what was finished is kept, and nothing is half-written.")
            code = STOPPED
        except BrokenPipeError:  # `hiendseg … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except HiEndSegError as error:
            if options.debug:
                traceback.print_exc()
            complain(error)
            code = 2 if error.code in ("bad-option", "bad-model", "cannot-write") else 1
        except Exception as error:  # noqa: BLE001 - one sentence, never a traceback unasked
            if options.debug:
                traceback.print_exc()
            from .batch import sentence_of
            complain(sentence_of(error))
            code = 1
        if interrupt.left_behind:
            # A library is still decoding a file on a thread; Python's own way out could crash in it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(prog="hiendseg", description="Organs in CT volumes. For research use; not a medical "
                                                               "device.")
    top.add_argument("--version", action="version", version=f"HiEndSeg {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, engine: bool = False) -> argparse.ArgumentParser:
        new = commands.add_parser(name, help=help, description=help)
        new.add_argument("--debug", action="store_true", help="show where in the program an error comes from")
        if engine:
            new.add_argument("--in-process", action="store_true",
                             help="compute in this process instead of a worker (a crash then ends the whole batch)")
            new.add_argument("--threads", type=int, metavar="N", help="processor threads to use (default: all)")
        return new

    segment = command("segment", "Segment volumes: images (.nii .nii.gz .nrrd .mha …), DICOM folders, or folders of "
                                 "either.", engine=True)
    segment.add_argument("inputs", nargs="+", metavar="IN")
    segment.add_argument("-o", "--output", required=True, metavar="OUT",
                         help="a file (.seg.nrrd .nii.gz .nii .nrrd .mha) or a folder, which then gets <case>.seg.nrrd")
    segment.add_argument("--model", metavar="ID", help="model id, id@version or folder (default: the shipped one)")
    segment.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default: auto)")
    segment.add_argument("--only", action="append", metavar="A,B", help="only these structures")
    segment.add_argument("--roi", metavar="R0,R1,A0,A1,S0,S1", help="only inside this box, in mm, RAS")
    segment.add_argument("--series", metavar="S", help="DICOM series by number or part of its description")
    segment.add_argument("--overwrite", action="store_true", help="replace files that are there already")

    adapt = command("adapt", "Teach a model from one labelled case; the result is a version of its own, the model "
                             "stays as it is.", engine=True)
    adapt.add_argument("volume", metavar="VOLUME", help="the image, or a DICOM folder")
    adapt.add_argument("labels", metavar="LABELS",
                       help="labels of it: .seg.nrrd, or an image of values with a labels.json beside it")
    adapt.add_argument("--name", required=True, help="what the new version is called")
    adapt.add_argument("--structures", action="append", metavar="A,B", help="teach only these, by id or name")
    adapt.add_argument("--new", action="append", metavar="ID=NAME",
                       help="teach a structure the model does not know; VALUE:ID=NAME where the labels have no names")
    adapt.add_argument("--model", metavar="ID", help="model id, id@version or folder (default: the shipped one)")
    adapt.add_argument("--encoder", metavar="FILE", help="make a new model around these encoder weights instead")
    speed = adapt.add_mutually_exclusive_group()
    speed.add_argument("--quick", dest="speed", action="store_const", const="quick",
                       help="the encoder stays as it is (default on a CPU)")
    speed.add_argument("--full", dest="speed", action="store_const", const="full",
                       help="everything learns (default on a graphics card)")
    adapt.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default: auto)")
    adapt.add_argument("--steps", type=int, metavar="N", help="at most this many steps (default: by the speed)")
    adapt.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same result on a CPU (default: 0)")
    adapt.add_argument("--series", metavar="S", help="DICOM series by number or part of its description")
    adapt.add_argument("--sides", choices=("ask", "keep", "swap"), default="ask",
                       help="what to do when left and right look swapped (default: stop and say so)")
    adapt.add_argument("--keep-teaching", action="store_true",
                       help="keep parts of this case beside the version, so that the next case does not undo it")
    adapt.add_argument("--keep-anyway", action="store_true", help="keep the version even if nothing got better")
    adapt.set_defaults(speed="auto")

    attention = command("attention", "Show what a model looks at from a point: maps on the image's lattice, and a "
                                     "figure.", engine=True)
    attention.add_argument("volume", metavar="VOLUME", nargs="?")
    attention.add_argument("--at", metavar="R,A,S",
                           help="look from here, in mm: -30,-12,40 or as it is printed, \"L 30, P 12, S 40\"")
    attention.add_argument("--labels", metavar="FILE", help="look from a structure of this label map")
    attention.add_argument("--structure", metavar="ID",
                           help="which structure of --labels; with --kind head and without --labels the one whose "
                                "object query is asked about")
    attention.add_argument("--query", type=int, metavar="N", help="object query of the head (with --kind head)")
    attention.add_argument("--layers", metavar="2,5,8,11", help="encoder blocks, from 0 (default: the paper's four)")
    attention.add_argument("--heads", nargs="?", const="all", default="mean", metavar="N",
                           help="mean (default), all, or one head's number; --heads alone means all")
    attention.add_argument("--kind", choices=("encoder", "rollout", "head"), default="encoder",
                           help="attention of single blocks (default), followed down to the image, or of the mask head")
    attention.add_argument("-o", "--output", required=True, metavar="OUT",
                           help="a volume (.nrrd .nii.gz .nii .mha); of several maps each gets its own file")
    attention.add_argument("--unit", choices=("share", "times", "unit"), default="times",
                           help="what voxels hold: how many times an even share (default), share of all attention, or "
                                "0 to 1")
    attention.add_argument("--figure", metavar="PNG", help="also draw a figure")
    attention.add_argument("--plane", choices=("axial", "coronal", "sagittal"),
                           help="plane of the figure when heads are shown (default: axial)")
    attention.add_argument("--model", metavar="ID", help="model id, id@version or folder (default: the shipped one)")
    attention.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default: auto)")
    attention.add_argument("--series", metavar="S", help="DICOM series by number or part of its description")
    attention.add_argument("--overwrite", action="store_true", help="replace files that are there already")

    models = command("models", "List, show, add, remove, verify or export models.")
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help, argument, optional in (
            ("list", "all models", None, False), ("show", "one model's card", "model", True),
            ("add", "copy a model folder or .zip into your own models", "path", False),
            ("remove", "delete one of your own models", "model", False),
            ("verify", "compare weights with the card's checksum", "model", True)):
        action = actions.add_parser(name, help=help, description=help)
        action.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        if argument:
            action.add_argument(argument, nargs="?" if optional else None)
    export = actions.add_parser("export", help="one file of a model or version for other people",
                                description="Write a model or version as one .zip, which 'hiendseg models add' takes. "
                                            "Teaching sets (parts of images) are never in it.")
    export.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    export.add_argument("model", help="id or id@version")
    export.add_argument("path", metavar="FILE")
    export.add_argument("--whole", action="store_true", help="a version with its base merged in: larger, and usable "
                                                             "without that base")
    export.add_argument("--overwrite", action="store_true", help="replace a file that is there already")

    info = command("info", "Say what a file or DICOM folder holds and what segmenting it would take.")
    info.add_argument("file", metavar="FILE")
    info.add_argument("--series", metavar="S", help="DICOM series by number or part of its description")
    info.add_argument("--model", metavar="ID", help="plan for this model (default: the shipped one)")

    command("doctor", "Check versions, devices and models.", engine=True)

    app = command("app", "Serve the page: segment, correct, adapt and look into the model in a browser, on this "
                         "computer.")
    app.add_argument("file", nargs="?", metavar="FILE", help="a volume to open (default: none)")
    app.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    app.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    app.add_argument("--no-browser", action="store_true", help="only print the address")

    demo = command("demo", "Segment the sample CT that ships with HiEndSeg.", engine=True)
    demo.add_argument("--page", action="store_true", help="serve the page with the result afterwards, if there is a "
                                                          "terminal")
    demo.add_argument("--once", action="store_true", help="with --page: end after the table all the same")
    demo.add_argument("-o", "--output", default="out", metavar="FOLDER", help="default: out")
    demo.add_argument("--model", metavar="ID", help="model id, id@version or folder (default: the shipped one)")
    demo.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default: auto)")
    return top


def _join_roi(argv: Sequence[str]) -> list[str]:
    """`--roi -10,20,…` as `--roi=-10,20,…`: argparse takes a value that begins with a minus for an option. So with --at
    and --layers."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--roi", "--at", "--layers"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
