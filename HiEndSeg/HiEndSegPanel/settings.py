"""The machine's settings (last model and device, measured speeds), kept by Slicer under "HiEndSeg/"."""

from __future__ import annotations

from collections.abc import MutableMapping

import qt

GROUP = "HiEndSeg/"


class Settings(MutableMapping):
    """A mapping of text by key on top of QSettings. What is not text in there reads as missing."""

    def __getitem__(self, key):
        value = qt.QSettings().value(GROUP + key)
        if not isinstance(value, str):
            raise KeyError(key)
        return value

    def __setitem__(self, key, value):
        qt.QSettings().setValue(GROUP + key, str(value))

    def __delitem__(self, key):
        if key not in self:
            raise KeyError(key)
        qt.QSettings().remove(GROUP + key)

    def __iter__(self):
        return iter([key[len(GROUP):] for key in qt.QSettings().allKeys() if key.startswith(GROUP)])

    def __len__(self):
        return sum(1 for _key in self)
