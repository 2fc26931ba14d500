"""Writing so that a file or folder is either there and whole, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}

#: A staging folder this old belongs to no program that still writes to it.
_LEFTOVER_SECONDS = 24 * 3600


@contextlib.contextmanager
def atomic_target(path, ending: str | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success it replaces `path`, else it is removed.

    ending: what the temporary name must end in, for writers that look at it (default: the suffix of `path`).
    Raises OutputError for a missing or unwritable folder, a full disk, and whatever else the system refuses; other
    exceptions of the block pass through, after the temporary file is gone.
    """
    path, temporary = Path(path), None
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give the name of a file in it.")
        if not path.parent.is_dir():
            raise OutputError(f"The folder {path.parent} does not exist; create it or choose another one.")
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"{path} is write-protected; choose another name or change its permissions.")
        target = Path(os.path.realpath(path))       # what a link points to is replaced, not the link
        temporary = target.parent / f".hiendseg-{secrets.token_hex(6)}{path.suffix if ending is None else ending}"
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is None and "requested and" in str(error):      # numpy's words for a write that was cut short
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OutputError(_sentence(path, error)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def staged_folder(target, prefix: str = ".writing-") -> Iterator[Path]:
    """Give an empty folder beside `target` to write into; on success it becomes `target`, else it is removed.

    Missing folders above are made. What a killed program left of the same kind a day ago or earlier is cleared away.
    Raises OSError as the system does (FileExistsError where there is a `target` already), so that callers can say what
    could not be written.
    """
    target, staging = Path(target), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target.parent, prefix)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        yield staging
        os.chmod(staging, 0o755)                            # mkdtemp made it private
        _sync_folder(staging)
        if os.path.lexists(target):                         # an empty folder would be replaced silently
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(staging, target)                          # fails rather than overwrite if somebody was faster
        staging = None
        _sync_folder(target.parent)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def clear_leftovers(folder: Path, prefix: str) -> None:
    """Remove what killed programs left in `folder` under names that begin so, a day ago or earlier."""
    for entry in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if not entry.is_symlink() and entry.stat().st_mtime < time.time() - _LEFTOVER_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    # Makes the new name durable; not every system can open a folder, and then the rename stands as it is.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sentence(path: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return f"{path} could not be written because the disk is full; make room or choose another disk."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"The folder {path.parent} may not be written to by this user; choose another one."
    if error.errno == errno.ENAMETOOLONG:
        return f"The name {path.name[:30]}… is too long for this disk; choose a shorter one."
    return f"{path} could not be written ({error.strerror or error}); choose another place."
