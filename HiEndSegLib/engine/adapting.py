"""Adapting, as both engines do it: what is asked for, what comes back. The work is `Library`'s; no torch on import."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation came to.

    key: `id@version` of the new version, None when nothing was kept (nothing got better).
    report: scores before and after, see `operations.adapt`; plain numbers, strings, lists and dicts.
    messages: sentences for the person.
    unsaved: names the result in `Engine.submit_keep` when nothing was kept; None otherwise.
    """

    key: str | None
    report: dict = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    unsaved: str | None = None

    @property
    def lasting(self) -> bool:
        """Whether there is something on the disk now; a cancel that comes after that comes too late."""
        return self.key is not None

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return {"key": self.key, "report": self.report, "messages": self.messages}
