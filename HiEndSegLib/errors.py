"""Errors a person can cause: each carries a stable code and one sentence that says what to do next.

The engine sends `code` and the sentence over the wire; faces print the sentence and nothing else.
"""

from __future__ import annotations


class HiEndSegError(Exception):
    """Base of all expected failures. `str(error)` is one sentence a person can act on."""

    code = "error"

    def __init__(self, sentence: str, *, code: str | None = None):
        super().__init__(sentence)
        if code is not None:
            self.code = code

    @property
    def sentence(self) -> str:
        return str(self)


class InputError(HiEndSegError):
    """A file or volume that cannot be used as it is."""

    code = "bad-input"


class OptionError(HiEndSegError):
    """An option that names something that does not exist or cannot be combined."""

    code = "bad-option"


class ModelError(HiEndSegError):
    """A model folder, card or weight file that is missing, altered or unsafe."""

    code = "bad-model"


class OutputError(HiEndSegError):
    """A result that could not be written; nothing half-written is left."""

    code = "cannot-write"


class DeviceError(HiEndSegError):
    """A computing device that was asked for and does not work."""

    code = "bad-device"


class OutOfMemoryError(HiEndSegError):
    """Not enough memory, after every step-down was tried."""

    code = "out-of-memory"


class EngineError(HiEndSegError):
    """The worker process died, could not start, or spoke another protocol."""

    code = "engine"


class Cancelled(HiEndSegError):
    """The person asked to stop. Not a failure."""

    code = "cancelled"

    def __init__(self, sentence: str = "Cancelled; nothing was changed."):
        super().__init__(sentence)


BY_CODE = {cls.code: cls for cls in
           (HiEndSegError, InputError, OptionError, ModelError, OutputError, DeviceError,
            OutOfMemoryError, EngineError, Cancelled)}


#: Codes for a question that a face can ask instead of failing, with the class that carries them.
BY_CODE["swapped-sides"] = OptionError


def from_code(code: str, sentence: str) -> HiEndSegError:
    """Rebuild an error that crossed the process border; one of an unknown code is of the base class, with that code."""
    error = BY_CODE.get(code, HiEndSegError)(sentence)
    error.code = code
    return error
