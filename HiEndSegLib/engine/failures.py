"""Any exception as one of ours, with a sentence; the same words whether it happened here or in the worker."""

from __future__ import annotations

from ..errors import EngineError, HiEndSegError, OutOfMemoryError


def as_failure(error: BaseException) -> HiEndSegError:
    """The exception itself if it is a HiEndSegError, else one that says what to do about it."""
    if isinstance(error, HiEndSegError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemoryError("The computer's memory is not enough for this; close other programs, or choose a "
                                "region of interest, and start again.")
    if isinstance(error, ModuleNotFoundError):
        return EngineError(f"The engine's Python has no module {error.name}; install what HiEndSeg needs there and "
                           "start again.")
    failure = HiEndSegError(f"Something unexpected went wrong ({type(error).__name__}); the log says where, please "
                            "report it with the log.")
    failure.__cause__ = error
    return failure


def is_fatal(error: BaseException) -> bool:
    """Whether nothing in this process can use the graphics card again."""
    text = str(error)
    return any(sign in text for sign in ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "device-side assert"))
