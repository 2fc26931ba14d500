"""Presenters' states as the page's state: one page variable per field, sent only when it differs."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any


def plain(value: Any) -> Any:
    """What JSON can hold: dataclasses as dicts, tuples and sets as lists, pictures as addresses that hold them,
    numbers that are not finite as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, bytes):                    # pictures are PNG files
        return "data:image/png;base64," + base64.b64encode(value).decode() if value else ""
    return str(value)


class Binding:
    """Keeps `PREFIX_field` of a trame state equal to `presenter.state.field`.

    extra: properties of the state that are no fields (such as "busy").
    """

    def __init__(self, state: Any, prefix: str, presenter: Any, extra: tuple[str, ...] = ()):
        self._state, self._prefix, self._presenter = state, prefix, presenter
        self._names = [field.name for field in dataclasses.fields(presenter.state)] + list(extra)
        self._sent: dict[str, Any] = {}
        presenter.changed.connect(self.show)
        self.show()

    def show(self) -> None:
        """Write what differs; it leaves with the next flush."""
        now = self._presenter.state
        for name in self._names:
            value = plain(getattr(now, name))
            if name not in self._sent or value != self._sent[name]:
                self._sent[name] = value
                self._state[f"{self._prefix}_{name}"] = value

    def close(self) -> None:
        self._presenter.changed.disconnect(self.show)
