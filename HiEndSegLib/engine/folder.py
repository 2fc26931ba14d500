"""Private temporary folders: where voxels lie while they cross the process border, and how they never stay behind.

A folder is 0700, lives for one job, and is removed by the client whatever happened. If the client dies too, the worker
removes it at its end of file; if both die at once, the next client on this machine does (`sweep`). "Dead" is known by a
lock that the owner's process holds as long as it lives, not by process numbers, which come round again.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path

from ..errors import OutputError

try:
    import fcntl
except ImportError:        # Windows: there a file that somebody holds open cannot be removed, which says the same
    fcntl = None

PREFIX = "hiendseg-"
LOCK_NAME = "lock"
#: A folder without a lock file may just be being made; only after this many seconds is it a leftover.
YOUNG = 3600.0


class PrivateFolder:
    """One folder of this process under `parent` (None: the system's temporary folder). Raises OutputError."""

    def __init__(self, parent: str | os.PathLike | None = None):
        self._closing = threading.Lock()
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))      # mode 0700
            try:
                self._lock: int | None = _hold(self.path / LOCK_NAME)
            except OSError:
                remove_tree(self.path)
                raise
        except OSError as error:
            where = tempfile.gettempdir() if parent is None else os.fspath(parent)
            raise OutputError(f"The temporary folder {where} cannot be written ({error.strerror}); make room there or "
                              "set TMPDIR to another folder.") from error

    def remove(self) -> bool:
        """Remove the folder and all in it; True once nothing is left. May be called again, from any thread."""
        with self._closing:
            lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
        return remove_tree(self.path)


def _hold(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _abandoned(folder: Path) -> bool:
    """Whether the process that made `folder` is gone."""
    lock = folder / LOCK_NAME
    try:
        if fcntl is None:
            os.remove(lock)                                  # PermissionError while the owner lives
            return True
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        try:
            return time.time() - folder.lstat().st_mtime > YOUNG
        except OSError:
            return False
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def sweep(parent: str | os.PathLike | None = None) -> int:
    """Remove this user's folders under `parent` whose process is gone; how many were removed. Never raises."""
    removed = 0
    try:
        entries = list(os.scandir(parent or tempfile.gettempdir()))
    except OSError:
        return 0
    for entry in entries:
        try:
            if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            if hasattr(os, "getuid") and entry.stat(follow_symlinks=False).st_uid != os.getuid():
                continue
        except OSError:
            continue
        if _abandoned(Path(entry.path)):
            removed += remove_tree(Path(entry.path))
    return removed


def remove_tree(path: Path) -> bool:
    """Remove a private folder; refuses any other. True if it is gone. Somebody may still be writing into it."""
    if not path.name.startswith(PREFIX):
        return False
    for _ in range(5):
        try:
            if not stat.S_ISDIR(path.lstat().st_mode):
                return False
            shutil.rmtree(path)
        except FileNotFoundError:
            if not path.exists():
                return True
        except OSError:
            time.sleep(0.01)       # a process that is being killed may hold or make a file for a moment
    return not path.exists()
