"""Taking in a model from outside: a folder or a zip file, neither of which is trusted.

Only names that a model needs are ever opened, each with a limit on the bytes it may give, so that links, tricky paths
and zip bombs have nothing to act on.
"""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Iterator

from ..errors import ModelError, OutputError
from ..tasks import CancelToken
from .card import CARD_NAME, ModelCard, card_from_bytes, read_card
from .card_checks import MAX_CARD_BYTES, leads_outside

TEXT_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "README.md",
               "README.txt", "NOTICE", "NOTICE.txt")
_MAX_TEXT_BYTES = 1024 * 1024
_MAX_ENTRIES = 1000
_MAX_RATIO = 50  # trained weights hardly compress at all
_CHUNK = 1024 * 1024


class FolderSource:
    """A model folder on disk."""

    def __init__(self, folder: Path):
        self.folder = folder

    def card(self) -> ModelCard:
        return read_card(self.folder)

    def has(self, name: str) -> bool:
        path = self.folder / name
        return path.is_file() and path.resolve().parent == self.folder.resolve()

    def open(self, name: str) -> BinaryIO:
        if not self.has(name):
            raise ModelError(f"The model folder {self.folder} has no file {name}, or it is a link that leads out of "
                             "the folder; get the model again.")
        return open(self.folder / name, "rb")


class ZipSource:
    """A zip file with the model's files at its top or in its single folder."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise ModelError(f"{path.name} holds {len(entries)} entries; a model has a handful, so this is not one.")
        self.entries: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            self._check(entry)
            if not entry.is_dir():
                self.entries[entry.filename] = entry
        cards = [name for name in self.entries if PurePosixPath(name).name == CARD_NAME
                 and len(PurePosixPath(name).parts) <= 2 and not name.startswith("__MACOSX")]
        if len(cards) != 1:
            raise ModelError(f"{path.name} holds {len(cards) or 'no'} model cards ({CARD_NAME}) at its top or in a "
                             "folder there; it must hold exactly one.")
        self.prefix = cards[0][:-len(CARD_NAME)]

    def _check(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        parts = name.rstrip("/").split("/")
        if any(leads_outside(part) for part in parts) or "\\" in name:
            raise ModelError(f"{self.path.name} holds an entry that would be written outside its folder ({name!r}); it "
                             "was made to do harm or is damaged, so do not use it.")
        if (entry.external_attr >> 16) & 0o170000 == 0o120000:
            raise ModelError(f"{self.path.name} holds a link ({name!r}), which a model may not; pack the files "
                             "themselves.")
        if entry.flag_bits & 1:
            raise ModelError(f"{self.path.name} is protected by a password; unpack it and add the folder.")
        if entry.file_size > _MAX_RATIO * entry.compress_size + _MAX_TEXT_BYTES:
            raise ModelError(f"{self.path.name} would unpack {name!r} to {entry.file_size / 1e6:.0f} MB from "
                             f"{entry.compress_size / 1e6:.2f} MB, as no model does; do not use it.")

    def card(self) -> ModelCard:
        with self.open(CARD_NAME) as stream:
            return card_from_bytes(stream.read(MAX_CARD_BYTES + 1), where=f"{CARD_NAME} in {self.path.name}")

    def has(self, name: str) -> bool:
        return self.prefix + name in self.entries

    def open(self, name: str) -> BinaryIO:
        if not self.has(name):
            raise ModelError(f"{self.path.name} has no file {name}; get the model again.")
        return self.archive.open(self.entries[self.prefix + name])


@contextmanager
def open_source(path: Path) -> Iterator[FolderSource | ZipSource]:
    """A folder or zip file as a source of model files. Raises ModelError when it is neither."""
    if path.is_dir():
        yield FolderSource(path)
        return
    if not path.exists():
        raise ModelError(f"There is no file or folder {path}; give a model folder or a .zip of one.")
    try:
        with zipfile.ZipFile(path) as archive:
            yield ZipSource(path, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{path.name} is not a readable zip file ({error}); give a model folder or a .zip of "
                         "one.") from None


def copy_model(source: FolderSource | ZipSource, card: ModelCard, folder: Path,
               cancel: CancelToken | None = None) -> None:
    """Copy card, weights and texts of a model into an empty folder. Raises ModelError, OutputError, OSError."""
    need = card.weights["bytes"] + MAX_CARD_BYTES
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OutputError(f"Adding model {card.key} needs {need / 1e6:.0f} MB and {folder.parent} has "
                          f"{free / 1e6:.0f} MB free; free some space. Nothing was changed.")
    limits = {card.weights["file"]: card.weights["bytes"]}
    limits.update({name: _MAX_TEXT_BYTES for name in TEXT_NAMES if source.has(name)})
    limits[CARD_NAME] = MAX_CARD_BYTES
    for name, limit in limits.items():
        with source.open(name) as stream, open(folder / name, "wb") as target:
            _copy(stream, target, name, limit, card, cancel)


def _copy(stream: BinaryIO, target: BinaryIO, name: str, limit: int, card: ModelCard,
          cancel: CancelToken | None) -> None:
    left = limit
    while chunk := stream.read(_CHUNK):
        if cancel is not None:
            cancel.check()
        left -= len(chunk)
        if left < 0:
            raise ModelError(f"{name} of model {card.key} is larger than the {limit} bytes it may have; get the model "
                             "again from where it came.")
        target.write(chunk)
    target.flush()
    os.fsync(target.fileno())
