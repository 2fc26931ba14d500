"""How long a segmentation takes here: remembered from earlier ones, and the seconds left of one that runs."""

from __future__ import annotations

import json
import math
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.card import ModelCard

#: Key in the settings: a JSON object by "model@version|device", newest last.
SETTING = "speeds"
_KEPT = 100
#: Without an earlier run nothing is said before this share and this many seconds.
_FIRST_FRACTION, _FIRST_SECONDS = 0.08, 1.0
#: How fast what is shown follows what is estimated, in seconds.
_SMOOTH = 4.0


class Speeds:
    """Seconds per tile and per million voxels, by model and device, kept in the settings as text.

    An entry: "tile" s per tile, "voxel" s per million input voxels for everything else, "share" of the planned tiles
    that were run (air is skipped).
    """

    def __init__(self, settings: MutableMapping[str, Any]):
        self._settings = settings

    def remember(self, info: dict) -> None:
        """Learn from `SegmentResult.info`; anything unusable in it is passed over.

        A run of a region says how long a tile takes, and nothing about the rest.
        """
        try:
            key = f"{info['model']['id']}@{info['model']['version']}|{info['device']}"
            run, planned = int(info["tiles"]["run"]), int(info["tiles"]["planned"])
            times = {name: float(value) for name, value in info["timings"].items()}
            millions = math.prod(info["input"]["shape"]) / 1e6
            whole = info["parameters"].get("roi") is None
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        entries = self._read()
        before = entries.pop(key, None)
        if run <= 0 or planned <= 0 or millions <= 0 or (before is None and not whole):
            return
        new = {"tile": times.get("tiles", 0.0) / run}
        if whole:
            new.update(voxel=(sum(times.values()) - times.get("tiles", 0.0)) / millions, share=min(1.0, run / planned))
        entry = dict(before or new)
        entry.update({name: (entry[name] + value) / 2 for name, value in new.items()})
        entries[key] = entry
        self._settings[SETTING] = json.dumps(dict(list(entries.items())[-_KEPT:]))

    def expected(self, card: ModelCard, device: str | None, shape: Sequence[int],
                 spacing: Sequence[float]) -> float | None:
        """Seconds for a whole volume of `shape` and `spacing` (mm) along R, A, S; None where nothing was measured."""
        entry = self._read().get(f"{card.key}|{device}")
        if entry is None:
            return None
        from ..operations.tiling import tile_starts

        model_shape = [max(1, math.ceil(n * s / t - 1e-4)) for n, s, t in zip(shape, spacing, card.spacing)]
        tiles = len(tile_starts((0, 0, 0), model_shape, model_shape, card.tile, card.overlap))
        return tiles * entry["share"] * entry["tile"] + math.prod(shape) / 1e6 * entry["voxel"]

    def _read(self) -> dict[str, dict[str, float]]:
        """What is stored, without anything that is not what was once written."""
        try:
            stored = json.loads(str(self._settings.get(SETTING) or "{}"))
        except ValueError:
            return {}
        if not isinstance(stored, dict):
            return {}
        return {key: entry for key, entry in stored.items() if isinstance(entry, dict)
                and set(entry) == {"tile", "voxel", "share"}
                and all(isinstance(v, (int, float)) and math.isfinite(v) and 0 <= v < 1e6 for v in entry.values())}


class TimeLeft:
    """Seconds left of one job from its fraction and the time it took so far.

    What an earlier run took counts most at the start and nothing at the end. What is shown runs down with the clock
    and is pulled gently toward the estimate, so that a tile that took longer does not make it jump; it rises only
    where it was far too low.
    """

    def __init__(self, now: float, expected: float | None = None):
        self._began, self._looked, self._expected = now, now, expected
        self._shown: float | None = None

    def update(self, fraction: float, now: float) -> float | None:
        """Seconds left at `now`; None as long as nobody can know."""
        elapsed, passed = now - self._began, max(0.0, now - self._looked)
        self._looked = now
        estimate = self._estimate(min(max(fraction, 0.0), 1.0), elapsed)
        if estimate is None:
            return None
        if self._shown is None:
            self._shown = estimate
            return self._shown
        self._shown = max(0.0, self._shown - passed)
        pull = (estimate - self._shown) * (1.0 - math.exp(-passed / _SMOOTH))
        if pull > passed and estimate < 1.5 * self._shown + 5:
            pull = passed                       # hold rather than climb
        self._shown = max(0.0, self._shown + pull)
        return self._shown

    def _estimate(self, fraction: float, elapsed: float) -> float | None:
        by_rate = None
        if fraction >= _FIRST_FRACTION and elapsed >= _FIRST_SECONDS:
            by_rate = elapsed * (1.0 - fraction) / fraction
        if self._expected is None:
            return by_rate
        before = max(self._expected - elapsed, self._expected * (1.0 - fraction) / 4)
        # the rate gains weight as the job goes on, and sooner where it takes longer than it should
        weight = min(1.0, max(fraction, elapsed / (2 * self._expected))) if self._expected > 0 else 1.0
        return before if by_rate is None else (1.0 - weight) * before + weight * by_rate
