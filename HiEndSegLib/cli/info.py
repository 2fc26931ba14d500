"""`hiendseg info`: what a file or DICOM folder holds, and what segmenting it would take. Works without torch."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..errors import HiEndSegError
from .console import say, table
from .interrupt import Interrupt


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """Describe one input; the exit code. Raises HiEndSegError when it cannot be read."""
    from ..geometry.modality import guess_modality
    from ..geometry.reading import list_series, read_volume

    path = Path(options.file)
    if path.is_dir():
        series = interrupt.wait_for(list_series, path)
        if series:
            say(table(("Series", "Description", "Modality", "Slices"),
                      [(info.number, info.description, info.modality, info.slices) for info in series], right=(0, 3)))
            say()
    chosen = options.series
    volume = interrupt.wait_for(read_volume, path, series=int(chosen) if chosen and chosen.isdigit() else chosen)
    shape, spacing = volume.shape, np.asarray(volume.spacing)
    array = volume.array
    say(table(("", ""), [
        ("Voxels", f"{' x '.join(map(str, shape))} ({array.dtype}, {array.nbytes / 1e6:.0f} MB)"),
        ("Spacing", " x ".join(f"{v:.4g}" for v in spacing) + " mm"),
        ("Extent", " x ".join(f"{n * v:.0f}" for n, v in zip(shape, spacing)) + " mm"),
        ("Axes", f"{volume.axis_codes}{_tilt(volume.ijk_to_ras)}"),
        ("Voxel 0, 0, 0", ", ".join(f"{name} {v:.1f}" for name, v in zip("RAS", volume.ijk_to_ras[:3, 3])) + " mm"),
        ("Values", f"{array.min():g} to {array.max():g}"),
    ]).split("\n", 2)[2])
    say(guess_modality(volume).sentence)
    for note in volume.notes:
        say(note)
    say(_plan(volume, options))
    return 0


def _plan(volume, options: argparse.Namespace) -> str:
    """What the model would take on the CPU, or why that cannot be said."""
    from ..models.registry import Registry
    from ..operations.plan import plan_memory

    try:
        card = Registry().get(options.model)
    except HiEndSegError as error:
        if options.model is not None:
            raise
        return str(error)
    import psutil

    plan = plan_memory(volume.shape, volume.spacing, card, "cpu", psutil.virtual_memory().available,
                       {"voxel_bytes": volume.array.dtype.itemsize})
    verdict = "" if plan.fits else " That does not fit; close other programs or crop it with --roi."
    return f"Model {card.key} on the CPU: {plan.sentence}{verdict}"


def _tilt(ijk_to_ras: np.ndarray) -> str:
    """", tilted by 12.3 degrees" for oblique volumes, and a word on left-handed ones."""
    columns = ijk_to_ras[:3, :3] / np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    angle = np.degrees(np.arccos(np.clip(np.abs(columns).max(axis=0).min(), -1, 1)))
    words = f", tilted by {angle:.1f} degrees" if angle > 0.05 else ""
    return words + (", left-handed" if np.linalg.det(columns) < 0 else "")
