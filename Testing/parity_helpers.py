"""Runs the parity command on a recording, as a person would."""

from __future__ import annotations

from pathlib import Path

import torch

from training.parity.__main__ import main


def judge(tmp_path: Path, capsys, recording: dict, *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, printed lines and what went to stderr."""
    path = tmp_path / "recording.pt"
    torch.save(recording, path)
    code = main([str(path), *arguments])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err
