"""Translation and numbers in words. A face may bring its own translations; without any, texts stay as written.

    from .wording import translator
    _ = translator(__name__)
    _("Segmenting {volume}").format(volume=name)        # whole sentences, named places, never f-strings inside _()

Slicer's: `set_translation(slicer.i18n.translate)`. The context is "presenter.<file>", as Slicer's tools name it.
"""

from __future__ import annotations

from typing import Callable, Iterable

#: (context, text) -> text
Translation = Callable[[str, str], str]


def _as_written(context: str, text: str) -> str:
    return text


_translation: Translation = _as_written


def set_translation(translation: Translation | None) -> None:
    """Use `translation(context, text)` for all texts from now on; None goes back to the texts as written."""
    global _translation
    _translation = translation or _as_written


def translator(module: str) -> Callable[[str], str]:
    """The `_` of one file. A text is looked up when it is needed, so the language may change meanwhile."""
    context = ".".join(module.split(".")[-2:])

    def _(text: str) -> str:
        return _translation(context, text)

    return _


_ = translator(__name__)


def seconds(count: float) -> str:
    """"8 s", "40 s", "3 min", "1 h 5 min": as fine as a person can use."""
    count = max(0.0, float(count))
    if count < 10:
        return _("{count} s").format(count=max(1, round(count)))
    if count < 57.5:
        return _("{count} s").format(count=5 * round(count / 5))
    minutes = round(count / 60)
    if minutes < 60:
        return _("{count} min").format(count=max(1, minutes))
    return _("{hours} h {minutes} min").format(hours=minutes // 60, minutes=minutes % 60)


def duration(count: float) -> str:
    """Seconds that are over: "12 s", "3 min 5 s", "1 h 2 min"."""
    whole = max(0, round(count))
    if whole < 60:
        return _("{count} s").format(count=whole)
    if whole < 3600:
        return _("{minutes} min {seconds} s").format(minutes=whole // 60, seconds=whole % 60)
    return _("{hours} h {minutes} min").format(hours=whole // 3600, minutes=whole % 3600 // 60)


def megabytes(count: float) -> str:
    """Bytes as "11.6 MB", "120 MB" or "1.4 GB"."""
    if count >= 1e9:
        return _("{count} GB").format(count=f"{count / 1e9:.1f}")
    return _("{count} MB").format(count=f"{count / 1e6:.1f}" if count < 99.95e6 else f"{count / 1e6:.0f}")


def listing(names: Iterable[str], limit: int = 6) -> str:
    """"Liver, Spleen and Colon"; of many the first ones and how many more."""
    names = list(names)
    if len(names) > limit:
        return _("{names} and {count} more").format(names=", ".join(names[:limit - 1]), count=len(names) - limit + 1)
    if len(names) < 2:
        return "".join(names)
    return _("{names} and {last}").format(names=", ".join(names[:-1]), last=names[-1])
