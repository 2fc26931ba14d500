"""What a browser sends in: kept in the session's private folder, checked before anything opens it.

Names are only looked at for their ending. Sizes are checked as they arrive and once more as they would unpack. A zip's
entries are written under numbers, so no name in it can lead anywhere; links and floods are refused, and archives in it
are not opened. An NRRD header that names another file is refused: it could name any file of this computer. What passes
is opened by a process of its own, see reading.py.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from HiEndSegLib.errors import HiEndSegError, InputError

#: Bytes that may be sent, that an image may have unpacked, and files in a zip.
MAX_UPLOAD, MAX_UNPACKED, MAX_FILES = 1_500_000_000, 4_000_000_000, 20_000
#: Bytes of a model's zip or of an encoder's weights; the largest encoder that was published has 1.5 GB.
MAX_MODEL = 4_000_000_000
#: Times that an entry of a zip may grow; DICOM images seldom pack better than 1 : 20.
MAX_RATIO = 200
#: Bytes of a zip's list of entries, and of a NIfTI file's header with its extensions.
MAX_LIST, MAX_EXTENSIONS = 8_000_000, 8_000_000
ENDINGS = (".nii", ".nii.gz", ".nrrd", ".zip")
ACCEPT = ".nii,.gz,.nrrd,.zip"
_CHUNK = 1 << 20
_HEADER = 1 << 16
_NRRD_BYTES = {**dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
               **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort",
                                "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
               **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t",
                                "float"), 4)}
#: The end of a zip: signature and size; what says that sizes are kept elsewhere, in 64 bits.
_ZIP_END, _ZIP_END_SIZE, _ZIP_64 = b"PK\x05\x06", 22, b"PK\x06\x07"
#: DICOM that is packed as a whole: it would be unpacked in one piece before anybody can ask for its size.
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.8.1")


def ending_of(name: str) -> str:
    """The ending of a file name that may be sent; InputError for any other."""
    low = name.lower()
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if low.endswith(ending):
            return ending
    raise InputError("This kind of file is not opened; send NIfTI (.nii, .nii.gz), NRRD (.nrrd), or a .zip of DICOM "
                     "files.")


def display_name(name: str) -> str:
    """A node's name from a file's: its last part without ending, plain characters only."""
    base = re.split(r"[/\\]", name)[-1]
    base = base[:len(base) - len(ending_of(base))]
    return re.sub(r"[^\w .()+-]", "_", base).strip(" .")[:60] or "Upload"


def check(path: Path, ending: str, *, most: int = MAX_UNPACKED) -> None:
    """Refuse, before any reader sees it, a file that is not what its ending says or would unpack to too much."""
    if path.stat().st_size == 0:
        raise InputError("The file is empty; send it again.")
    if ending == ".zip":
        _check_zip(path, most)
    elif ending == ".nrrd":
        _check_nrrd(path, most)
    else:
        _check_nifti(path, ending, most)


def unpack(path: Path, folder: Path, *, most: int = MAX_UNPACKED) -> Path:
    """The files of a zip as folder/000000 …; the folder. `check` has been called; sizes are counted again."""
    folder.mkdir()
    left = most
    with zipfile.ZipFile(path) as archive:
        for number, entry in enumerate(info for info in archive.infolist() if not info.is_dir()):
            try:
                with archive.open(entry) as source, open(folder / f"{number:06d}", "wb") as target:
                    while chunk := source.read(_CHUNK):
                        left -= len(chunk)
                        if left < 0:                        # the zip's own list of sizes lied
                            raise InputError(_too_large(most))
                        target.write(chunk)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                raise InputError(f"The zip is damaged or encrypted ({_words(error)}); make it again.") from None
    return folder


def check_dicom(folder: Path, most: int = MAX_UNPACKED) -> None:
    """Refuse DICOM that says of itself that it unpacks to too much. Headers only; damaged files are the reader's."""
    import pydicom

    from HiEndSegLib.geometry.dicom import quiet_pydicom

    total = 0
    for path in folder.iterdir():
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                continue
        try:
            with quiet_pydicom():
                meta = pydicom.filereader.read_file_meta_info(path)
                deflated = str(meta.get("TransferSyntaxUID", "")) in _DEFLATED
                header = {} if deflated else pydicom.dcmread(
                    path, stop_before_pixels=True, specific_tags=["Rows", "Columns", "NumberOfFrames", "BitsAllocated"])
                numbers = [int(header.get(name) or least) for name, least in
                           (("Rows", 0), ("Columns", 0), ("NumberOfFrames", 1), ("BitsAllocated", 16))]
        except Exception:                                   # noqa: BLE001 - pydicom raises many kinds
            continue
        if deflated:
            raise InputError("The zip holds DICOM files that are packed as a whole (deflated), which are not opened; "
                             "export them uncompressed.")
        total += math.prod(numbers) // 8
        if total > most:
            raise InputError(_too_large(most))


def _check_zip(path: Path, most: int) -> None:
    _check_zip_end(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"This is no readable zip ({_words(error)}); make it again.") from None
    if not entries:
        raise InputError("The zip is empty; put the DICOM files of one series into it.")
    if len(entries) > MAX_FILES:
        raise InputError(f"The zip holds {len(entries)} files, and up to {MAX_FILES} are accepted; send one series.")
    for entry in entries:
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError("The zip holds links to other files, which are not followed; put the files in themselves.")
        if entry.flag_bits & 1:
            raise InputError("The zip is encrypted; send it without a password.")
        if entry.file_size > MAX_RATIO * max(entry.compress_size, 1) and entry.file_size > _CHUNK:
            raise InputError("The zip would unpack to far more than it holds, as no images do; it is not opened.")
    if sum(entry.file_size for entry in entries) > most:
        raise InputError(_too_large(most))


def _check_zip_end(path: Path) -> None:
    """Refuse a list of entries that is long before it is read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = max(0, size - _ZIP_END_SIZE - (1 << 16) - 20)
        file.seek(start)
        tail = file.read()
    at = tail.rfind(_ZIP_END)
    if at < 0 or len(tail) < at + _ZIP_END_SIZE:
        raise InputError("This is no readable zip (it has no end); make it again.")
    if _ZIP_64 in tail[max(0, at - 20):at] or int.from_bytes(tail[at + 12:at + 16], "little") > MAX_LIST:
        raise InputError(f"The zip holds too many files; up to {MAX_FILES} are accepted, send one series.")


def _check_nifti(path: Path, ending: str, most: int) -> None:
    import nibabel

    with open(path, "rb") as file:
        head = _unzipped_head(file, 540) if ending == ".nii.gz" else file.read(540)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if len(head) >= kind.sizeof_hdr:
            try:
                header = kind(head[:kind.sizeof_hdr], check=True)
                shape, size = header.get_data_shape(), header.get_data_dtype().itemsize
                start = float(header["vox_offset"])
            except Exception:                               # noqa: BLE001 - nibabel raises many kinds
                continue
            _check_size(shape, size, most)
            if not 0 <= start <= MAX_EXTENSIONS:
                raise InputError("The header of this NIfTI file is far longer than headers are; export it again.")
            return
    raise InputError("This is no NIfTI file, or it was cut short; export it again.")


def _check_nrrd(path: Path, most: int) -> None:
    with open(path, "rb") as file:
        head = file.read(_HEADER)
    if not head.startswith(b"NRRD000"):
        raise InputError("This is no NRRD file; export it again.")
    ends = [at for at in (head.find(b"\n\n"), head.find(b"\r\n\r\n")) if at >= 0]
    if not ends:
        raise InputError("The header of this NRRD file has no end; export it again.")
    text = head[:min(ends)].decode("ascii", "replace")
    fields = {}
    for line in text.splitlines()[1:]:
        key, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            fields[key.strip().lower().replace(" ", "")] = value.lstrip("=").strip()
    if "datafile" in fields:
        raise InputError("This NRRD header names another file for its voxels; send one file with everything in it.")
    try:
        shape = [int(part) for part in fields["sizes"].split()]
    except (KeyError, ValueError):
        raise InputError("The sizes in this NRRD header cannot be read; export it again.") from None
    _check_size(shape, _NRRD_BYTES.get(fields.get("type", "").lower(), 8), most)


def _check_size(shape: Any, item: int, most: int) -> None:
    if any(int(n) < 1 for n in shape) or math.prod(int(n) for n in shape) * max(int(item), 1) > most:
        raise InputError(_too_large(most))


def _unzipped_head(file: BinaryIO, count: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            return packed.read(count)
    except (OSError, EOFError, zlib.error):
        raise InputError("This .gz file is damaged; export it again.") from None


def _too_large(most: int) -> str:
    return f"The image would take more than {np.round(most / 1e9, 1):g} GB; crop it, or open it in desktop Slicer."


def _words(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def add_routes(app: Any, session: Any) -> None:
    """POST /upload?name=…, the file itself as the body: the page's script sends it and shows how far it is."""
    async def upload(request: Any) -> Any:
        async def work(folder: Path) -> dict:
            name = request.query.get("name", "")
            ending = ending_of(name)
            session.may_open()
            # Under no name of the sender's; what cannot be opened is said in sentences that begin with this one.
            path = await receive(request, folder / f"The image{ending}")
            await session.open_in_background(await asyncio.to_thread(_prepare, path, ending), display_name(name))
            return {"name": display_name(name)}

        return await answer(session.folder, "upload-", work)

    app.router.add_post("/upload", upload)


async def answer(private: Path, prefix: str, work: Callable[[Path], Awaitable[dict]]) -> Any:
    """What `work` makes of a file that was sent, for the page's script: its dict, or why not as {"error": sentence}.

    work: gets a folder of its own in `private`, of which nothing stays: nothing of the patient lies on the disk.
    """
    from aiohttp import web

    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=private))
        return web.json_response(await work(folder))
    except HiEndSegError as error:
        return web.json_response({"error": str(error)})         # a status would fill the console
    except OSError as error:
        return web.json_response({"error": f"The file could not be kept ({error.strerror or error}); free some space "
                                           "and send it again."})
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def models_are_free(models: Any) -> None:
    """Raises InputError while the models' presenter has something to do, before a large file is taken in."""
    if models.state.busy:
        raise InputError("Something goes on with the models already; wait for it.")


async def added(models: Any, path: Path) -> None:
    """Hand a file to the models' presenter, and wait until it is done with it."""
    models.add(path)
    while models.state.busy:
        await asyncio.sleep(0.05)                               # the session's turns go on meanwhile


async def receive(request: Any, path: Path, most: int = MAX_UPLOAD,
                  instead: str = "crop it, or open it in desktop Slicer") -> Path:
    """A request's body as a file. Raises InputError where it is longer than allowed; instead: what to do then."""
    too_long = f"The file is larger than {most / 1e9:g} GB; {instead}."
    if (request.content_length or 0) > most:
        raise InputError(too_long)
    got = 0
    with open(path, "wb") as file:
        async for chunk in request.content.iter_chunked(_CHUNK):
            got += len(chunk)
            if got > most:
                raise InputError(too_long)
            file.write(chunk)
    return path


def _prepare(path: Path, ending: str) -> Path:
    check(path, ending)
    if ending != ".zip":
        return path
    folder = unpack(path, path.parent / "The zip")
    path.unlink()
    check_dicom(folder)
    return folder
