"""``python -m training.parity FILE [--weights FILE]``: is our network equal to the recorded one?

Prints ``name max_abs_difference`` per recorded tensor and ``max VALUE`` last; reasons and remarks go to stderr.
Exit code 0: equal. 1: an activation or logit differs by more than 1e-4, or a recorded field could not be compared.
2: the file cannot be read, or is no recording this command knows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from HiEndSegLib.errors import HiEndSegError, InputError
from HiEndSegLib.models.weights import read_checkpoint
from training.parity import hi_end_mae, position, unetr
from training.parity.comparison import Comparison

# Recordings this command recognises and does not compare yet: field that gives them away -> name.
_ANNOUNCED = {"stage0": "HRMedSeg's encoder"}


def kinds_of(name: str, recording: dict) -> list:
    """The kinds a recording belongs to (modules with ``matches`` and ``compare``); InputError for none."""
    kinds = [kind for kind in (unetr, hi_end_mae, position) if kind.matches(recording)]
    if kinds:
        return kinds
    for field, network in _ANNOUNCED.items():
        if field in recording:
            raise InputError(f"{name} is a recording of {network}, which this version cannot compare yet; "
                             "it compares UNETR, Hi-End-MAE and position tables.")
    raise InputError(f"{name} is no recording this command knows (its fields: {', '.join(map(str, recording))}); "
                     "it compares UNETR, Hi-End-MAE and position tables.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.parity",
                                     description="Compare our networks with a recording of the authors' code.")
    parser.add_argument("file", type=Path, help="the recording")
    parser.add_argument("--weights", type=Path, help="file with the weights the recording leaves out")
    options = parser.parse_args(arguments)
    comparison = Comparison()
    try:
        recording = read_checkpoint(options.file, mmap=True)
        kinds = kinds_of(options.file.name, recording)
    except HiEndSegError as error:
        print(error.sentence, file=sys.stderr)
        return 2
    for kind in kinds:
        try:
            kind.compare(recording, options.weights, comparison)
        except HiEndSegError as error:
            comparison.failures.append(error.sentence)
    for line in comparison.lines:
        print(line)
    print(f"max {comparison.largest if comparison.lines else float('nan'):.3e}")
    for remark in comparison.remarks:
        print(f"note: {remark}", file=sys.stderr)
    for failure in comparison.failures:
        print(f"not equal: {failure}", file=sys.stderr)
    if not comparison.lines and not comparison.failures:
        print("not equal: the recording holds nothing to compare", file=sys.stderr)
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
