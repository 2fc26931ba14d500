"""`hiendseg doctor`: versions, devices and models in sentences. Works, and says so, where torch is missing."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import HiEndSegError
from ..models.registry import Registry
from .console import complain, say
from .interrupt import Interrupt
from .segment import make_engine


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """Look at everything; exit code 1 when something needs repair, each thing in one sentence."""
    problems: list[str] = []
    with make_engine(options) as engine:
        try:
            report = _report(engine, interrupt)
        except HiEndSegError as error:
            if error.code == "cancelled":
                raise
            report = {"sentences": [], "problems": []}
            problems.append(f"The engine does not work: {error}")
    problems += report["problems"]
    for sentence in report["sentences"]:
        if sentence not in report["problems"]:
            say(sentence)
    registry = Registry()
    try:
        card = registry.verify(cancel=interrupt.token)
        say(f"The default model is {card.key} ({card.title}); its weights are sound.")
    except HiEndSegError as error:
        if error.code == "cancelled":
            raise
        problems.append(str(error))
    say(f"Your own models: {registry.user}")
    for sentence in dict.fromkeys(problems):
        complain(sentence)
    if not problems:
        say("Everything is in order.")
    return 1 if problems else 0


def _report(engine: Any, interrupt: Interrupt) -> dict:
    """`Engine.doctor`, which takes seconds where devices are slow to start, left when Ctrl-C is pressed."""
    job = engine.submit_doctor()
    while True:
        try:
            return job.result(timeout=0.1)
        except TimeoutError:
            interrupt.token.check()
