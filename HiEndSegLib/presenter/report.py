"""The text of a bug report: versions, devices, models, the last error and the log, and nothing about a patient."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .. import __version__
from ..engine.redact import redact
from .packages import PackageRow

if TYPE_CHECKING:
    from ..models.card import ModelCard

_LOG_LINES = 100


def together(*facts: dict) -> dict:
    """The `report_facts` of several sections as those of one: every error, every line."""
    return {"error": " | ".join(filter(None, (entry.get("error") for entry in facts))),
            "log": [line for entry in facts for line in entry.get("log", ())],
            "secrets": [name for entry in facts for name in entry.get("secrets", ())]}


def bug_report(*, host: str, packages: Sequence[PackageRow], doctor: dict | None, cards: Sequence[ModelCard],
               problems: Iterable[str] = (), error: str = "", log: Sequence[str] = (),
               secrets: Iterable[str] = ()) -> str:
    """Plain text. host: the program around, e.g. "3D Slicer 5.10.0". secrets: names that must not be in it.

    Paths become <path>, secrets <name>; models are named by id, version and the start of their checksum. Not
    translated: it is for those who mend things.
    """
    secrets = [secret for secret in secrets if secret]
    lines = ["HiEndSeg bug report (no images, names or paths are in it; read it before you send it)", "",
             f"HiEndSeg {__version__} in {host}",
             f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}", "",
             "Packages:"]
    lines += [f"  {row.requirement}: {row.installed or 'missing'}{'' if row.state == 'ok' else ' (' + row.state + ')'}"
              for row in packages]
    if doctor is not None:
        lines += [f"  {name} {version}" for name, version in sorted((doctor.get("versions") or {}).items())
                  if version is not None and name not in ("HiEndSeg", "python")]
        lines += ["", "Devices:"]
        lines += [f"  {device['kind']}: {redact(str(device['sentence']))}" for device in doctor.get("devices") or []]
        lines += [f"  {redact(str(problem), secrets)}" for problem in doctor.get("problems") or []]
    else:
        lines += ["", "Devices: not looked at"]
    lines += ["", "Models:", *(f"  {card.key} ({card.network.get('kind')}, {card.checksum[:12]})" for card in cards)]
    lines += [f"  not usable: {redact(str(problem), secrets)}" for problem in problems]
    lines += ["", "Last error:", f"  {redact(error, secrets) if error else 'none'}", "", "Log:"]
    lines += [f"  {redact(line, secrets)}" for line in log[-_LOG_LINES:]] or ["  empty"]
    return "\n".join(lines) + "\n"
