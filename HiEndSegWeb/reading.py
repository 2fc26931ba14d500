"""A file is opened by a process of its own: whatever it does to a reader, the page and its scene stay.

A damaged or hostile image can crash a decoder, ask for more memory than there is, or unpack for hours. The process has
limits on memory and time; voxels come back as an array without code, DICOM headers as bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from HiEndSegLib.errors import HiEndSegError, InputError
from HiEndSegLib.geometry.volume import Volume

#: Bytes of address space and seconds of computing for a file that was sent; what a person names on the command line is
#: read without limits.
MEMORY, SECONDS = 16_000_000_000, 300
_VOXELS, _HEADERS = "voxels.npy", "headers"


@dataclass(frozen=True)
class Opened:
    """headers: of a DICOM series' images, without pixels, each as the bytes of a DICOM file; () for other files."""

    volume: Volume
    headers: tuple[bytes, ...] = ()


class Reading:
    """Starts reading at once. folder: a private one, where voxels are for a moment. limited: the file was sent."""

    def __init__(self, path: str | Path, folder: Path, *, limited: bool = True):
        self._folder = Path(tempfile.mkdtemp(prefix="reading-", dir=folder))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "HiEndSegWeb.reading", str(path), str(self._folder),
             *(["--limited"] if limited else [])],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def result(self) -> Opened:
        """Wait for the volume. Raises InputError with a sentence."""
        try:
            told, _ = self._process.communicate()
            try:
                answer = json.loads(told.decode("utf-8", "replace").splitlines()[-1])
            except (IndexError, ValueError):
                raise InputError(_died(self._process.returncode)) from None
            if answer.get("error"):
                raise InputError(answer["error"])
            array = np.load(self._folder / _VOXELS, allow_pickle=False)
            volume = Volume(array, np.array(answer["matrix"]), answer["name"], answer["meta"])
            headers = tuple(path.read_bytes() for path in sorted((self._folder / _HEADERS).glob("*")))
            return Opened(volume, headers)
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading and leave nothing on the disk. May be called twice."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """The process: reads, writes voxels and headers into the folder, prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limited", action="store_true")
    options = parser.parse_args(argv)
    if options.limited:
        _limit()
    try:
        answer = _read(options.path, options.folder)
    except HiEndSegError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "The image does not fit into memory; crop it, or open it in desktop Slicer."}
    except OSError as error:
        answer = {"error": f"The image could not be kept while it was opened ({error.strerror or error}); free some "
                           "space and try again."}
    print(json.dumps(answer), flush=True)
    return 0


def _read(path: Path, folder: Path) -> dict:
    from HiEndSegLib.geometry.reading import EXTENSIONS, extension, list_series, read_volume

    if path.is_dir() and len(found := list_series(path)) > 1:
        raise InputError(f"There are {len(found)} image series in it ({'; '.join(map(str, found[:5]))}); send one of "
                         "them, in a zip of its own.")
    volume = read_volume(path)
    np.save(folder / _VOXELS, volume.array, allow_pickle=False)
    if path.is_dir() or extension(path) not in (*EXTENSIONS, ".seg.nrrd"):
        from HiEndSegLib.geometry.dicom_seg import source_headers

        (folder / _HEADERS).mkdir()
        for number, header in enumerate(source_headers(path)):
            header.save_as(folder / _HEADERS / f"{number:06d}", enforce_file_format=False)
    return {"matrix": volume.ijk_to_ras.tolist(), "name": volume.name,
            "meta": {key: value for key, value in volume.meta.items() if isinstance(value, (str, list))}}


def _limit() -> None:
    try:
        import resource
    except ImportError:                                     # Windows has no such limits
        return
    for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        _soft, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(kind, (most, hard))


def _died(code: int | None) -> str:
    import signal

    if code is not None and code < 0 and -code == getattr(signal, "SIGXCPU", None):
        return f"The file was given up after {SECONDS // 60} minutes of unpacking; it is not what it says it is."
    return "The file could not be opened: its reader ended without a word. It may be damaged; export it again."


if __name__ == "__main__":
    sys.exit(main())
