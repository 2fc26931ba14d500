"""Which models there are: those that ship with HiEndSeg and those in the user's own folder. No torch, no network."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

from ..errors import HiEndSegError, ModelError, OptionError, OutputError
from ..geometry.files import clear_leftovers, staged_folder
from ..resources import resource
from ..tasks import CancelToken
from .card import CARD_NAME, ModelCard, read_card, verify_weights, write_card
from .family import find_base, find_parent, free_id, free_name
from .intake import copy_model, open_source

USER_FOLDER_VARIABLE = "HIENDSEG_MODELS"


@dataclass(frozen=True)
class ModelProblem:
    """A folder that should hold a model and cannot be used, with the sentence that says why.

    key: `id@version` where the card could be read.
    """

    folder: Path
    sentence: str
    key: str = ""

    def __str__(self) -> str:
        return self.sentence


def shipped_folder() -> Path:
    """The folder of the models that come with HiEndSeg (it may not exist)."""
    return resource("Models")


def user_folder() -> Path:
    """The user's own model folder: `HIENDSEG_MODELS` when set, else where the system keeps a program's data."""
    override = os.environ.get(USER_FOLDER_VARIABLE)
    if override:
        return Path(override).expanduser()
    import platformdirs
    return Path(platformdirs.user_data_dir("HiEndSeg", appauthor=False)) / "models"


class Registry:
    """Models by id. Every call looks at the disk again, so that several programs can share the folders."""

    def __init__(self, shipped: str | os.PathLike | None = None, user: str | os.PathLike | None = None):
        self.shipped = Path(shipped) if shipped is not None else shipped_folder()
        self.user = Path(user) if user is not None else user_folder()
        self._problems: list[ModelProblem] | None = None

    # ------------------------------------------------------------------------------------------------ reading

    def list(self) -> list[ModelCard]:
        """All usable cards: shipped ones first with the default at the top, newest version of an id first."""
        problems: list[ModelProblem] = []
        shipped = _scan(self.shipped, problems)
        shipped.sort(key=lambda card: not card.default)
        keys = {card.key for card in shipped}
        user = []
        for card in _scan(self.user, problems):
            if card.key in keys:
                problems.append(ModelProblem(card.folder, f"Model {card.key} in {card.folder} is not used, because a "
                                             "model of this id and version exists already; give it another version."))
            else:
                keys.add(card.key)
                user.append(card)
        self._problems = problems
        return self._loadable(shipped + user)

    @property
    def problems(self) -> list[ModelProblem]:
        """Folders passed over by the last `list()`, each with its sentence."""
        if self._problems is None:
            self.list()
        return list(self._problems)

    def get(self, id_or_path: str | os.PathLike | None = None) -> ModelCard:
        """The card of an id, of `id@version`, or of a model folder's path; None is the default model.

        An id without version gives its newest version. Raises OptionError when there is no such model and ModelError
        when there is one that cannot be used.
        """
        cards = self.list()
        if id_or_path is None:
            if not cards:
                raise ModelError(f"No model is installed: neither {self.shipped} nor {self.user} holds one; install "
                                 "one with 'hiendseg models add'." + self._problem_words())
            return cards[0]
        name = os.fspath(id_or_path)
        found = [card for card in cards if name in (card.id, card.key)]
        if found:
            return max(found, key=lambda card: version_key(card.version))
        if name and (Path(name) / CARD_NAME).is_file():
            return read_card(name)
        for problem in self.problems:
            if problem.folder.name in (name, f"{name}@") or problem.folder.name.startswith(f"{name}@"):
                raise ModelError(problem.sentence)
        known = ", ".join(dict.fromkeys(card.id for card in cards)) or "none"
        raise OptionError(f"There is no model '{name}'; installed are: {known}. A model folder's path works too.")

    def is_shipped(self, card: ModelCard) -> bool:
        """Whether the card belongs to a model that came with HiEndSeg (those cannot be removed)."""
        return card.folder is not None and card.folder.resolve().parent == self.shipped.resolve()

    def verify(self, id_or_path: str | os.PathLike | None = None, cancel: CancelToken | None = None) -> ModelCard:
        """Check card, size and checksum of a model; returns its card or raises ModelError."""
        card = self.get(id_or_path)
        verify_weights(card, cancel)
        if card.is_version:
            verify_weights(self.base_of(card), cancel)
        return card

    # ------------------------------------------------------------------------------------------------ families

    def base_of(self, card: ModelCard) -> ModelCard:
        """The whole model whose weights a version changes; a whole model is its own base.

        Raises ModelError where it is not installed, or has other weights than those the version was made for.
        """
        if not card.is_version:
            return card
        problems: list[ModelProblem] = []
        cards = _scan(self.shipped, problems) + _scan(self.user, problems)
        return find_base(card, cards, _damaged(problems))

    def parent_of(self, card: ModelCard) -> ModelCard | None:
        """What a version was adapted from: its base or another version; None for a whole model, or where the parent
        was deleted since (a version does not need it)."""
        return find_parent(card, self.list())

    def versions_of(self, card: ModelCard) -> list[ModelCard]:
        """The installed versions that were adapted from this model, at once or by way of other versions of it."""
        return [other for other in self.list() if other.is_version and card.key != other.key and
                any(other.adaptation[role]["sha256"] == card.checksum for role in ("base", "parent"))]

    def needed_by(self, card: ModelCard) -> list[ModelCard]:
        """The versions that would be lost with this model; while there are any, it cannot be removed."""
        return _lost_without(card, self.list())

    def ids(self) -> set[str]:
        """Ids that are taken: those of the models, and of folders that are none."""
        cards = _scan(self.shipped, []) + _scan(self.user, [])
        try:
            folders = {entry.name.partition("@")[0] for entry in self.user.iterdir()}
        except OSError:
            folders = set()
        return {card.id for card in cards} | folders

    def _loadable(self, cards: list[ModelCard]) -> list[ModelCard]:
        """Without the versions whose base is gone; each becomes a problem."""
        usable, damaged = [], _damaged(self._problems)
        for card in cards:
            try:
                if card.is_version:
                    find_base(card, cards, damaged)
                usable.append(card)
            except ModelError as error:
                self._problems.append(ModelProblem(card.folder, str(error), card.key))
        return usable

    # ------------------------------------------------------------------------------------------------ changing

    def add(self, path: str | os.PathLike, cancel: CancelToken | None = None,
            check: Callable[[ModelCard], object] | None = None) -> ModelCard:
        """Copy a model folder or `.zip` into the user's folder, checked, whole or not at all.

        Only the card, the weights and texts (licence, read-me) are taken. check: called with the copy's card before
        it counts (e.g. `loading.load_model`, where torch is there); what it raises stops the addition.
        A version needs its base here, and gets a free name where another one has its own already.
        Raises ModelError (not a sound model, it is here already, or its base is not) and OutputError (disk full, not
        writable).
        """
        cards = self.list()
        with open_source(Path(path)) as source:
            card = source.card()
            stored = card
            if card.is_version:
                find_base(card, cards)
                twin = next((other for other in cards if other.checksum == card.checksum), None)
                card = twin or self._renamed(card, cards)
            if any(card.key == other.key for other in cards):
                raise ModelError(f"Model {card.key} is installed already and is not overwritten; remove it first with "
                                 f"'hiendseg models remove {card.key}' or give the new one another version.")
            target = self.user / card.key
            if target.exists():
                raise ModelError(f"The folder {target} exists already and is not overwritten; remove it and add the "
                                 "model again.")
            try:
                with staged_folder(target, ".adding-") as staging:
                    copy_model(source, stored, staging, cancel)
                    copied = read_card(staging)
                    if card is not stored:
                        write_card(card, staging)
                        copied = read_card(staging)
                    verify_weights(copied, cancel)
                    if check is not None:
                        check(copied)
            except OSError as error:
                raise OutputError(f"The model could not be copied into {self.user} ({error.strerror or error}); free "
                                  "some space or make the folder writable. Nothing was changed.") from None
        self._problems = None
        return read_card(target)

    def remove(self, id: str) -> Path:
        """Delete one of the user's models (`id`, or `id@version` when there are several). Returns the folder.

        Raises OptionError (no such model, several versions) and ModelError (it came with HiEndSeg, or versions need
        it).
        """
        everything = self.list()
        cards = [card for card in everything if id in (card.id, card.key)]
        own = [card for card in cards if not self.is_shipped(card)]
        folders = [card.folder for card in own]
        if not cards:  # a broken one can be removed too, by its folder's name
            folders = [p.folder for p in self.problems
                       if p.folder.parent == self.user and (p.folder.name == id or p.folder.name.startswith(f"{id}@"))]
        if cards and not own:
            raise ModelError(f"Model {cards[0].key} came with HiEndSeg and cannot be removed; only models in "
                             f"{self.user} can.")
        if not folders:
            raise OptionError(f"There is no model '{id}' in {self.user}; 'hiendseg models list' names those there are.")
        if len(folders) > 1:
            raise OptionError(f"There are several versions of {id}: {', '.join(f.name for f in folders)}; say which "
                              "one to remove.")
        folder = folders[0]
        lost = _lost_without(own[0], everything) if own else []
        if lost:
            names = ", ".join(f"{version.title} ({version.key})" for version in lost[:5])
            more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
            verb = "is" if len(lost) == 1 else "are"
            raise ModelError(f"Model {own[0].key} is needed by {names}{more}, which {verb} "
                             "made of changes to it; remove what was adapted from it first, or keep it.")
        try:
            if folder.is_symlink():
                folder.unlink()  # somebody's link to a folder elsewhere: the folder is not ours to delete
            else:
                clear_leftovers(self.user, ".removing-")
                hidden = folder.with_name(f".removing-{folder.name}-{os.getpid()}")
                os.rename(folder, hidden)  # gone for every other program at once
                shutil.rmtree(hidden, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"The model folder {folder} could not be removed ({error.strerror or error}); check its "
                              "permissions.") from None
        self._problems = None
        return folder

    def _renamed(self, card: ModelCard, cards: list[ModelCard]) -> ModelCard:
        """A version under a free name and id, where another model has its own already; else the very same card."""
        id_, name = free_id(card.id, self), free_name(card.title, cards)
        if (id_, name) == (card.id, card.title):
            return card
        return replace(card, id=id_, title=name, adaptation={**card.adaptation, "name": name})

    def _problem_words(self) -> str:
        return f" ({self.problems[0].sentence})" if self.problems else ""


def version_key(version: str) -> tuple:
    """Sort key of versions: 1.10 after 1.9; `1.0-x` before 1.0 and `1.0+x` after it, as semver orders them."""
    numbers, tail = re.match(r"([0-9.]*[0-9])(.*)$", version).groups()
    rank = -1 if tail.startswith("-") else (1 if tail else 0)
    pieces = tuple((0, int(piece), "") if piece.isdigit() else (1, 0, piece)
                   for piece in re.findall(r"[0-9]+|[A-Za-z]+", tail))
    parts = [int(number) for number in numbers.split(".")]
    return tuple(parts + [0] * (4 - len(parts))), rank, pieces


def _lost_without(card: ModelCard, cards: list[ModelCard]) -> list[ModelCard]:
    others, lost = [other for other in cards if other.key != card.key], []
    for other in others:
        if other.is_version:
            try:
                find_base(other, others)
            except ModelError:
                lost.append(other)
    return lost


def _damaged(problems: list[ModelProblem]) -> dict[str, str]:
    return {problem.key: problem.sentence for problem in problems if problem.key}


def _scan(root: Path, problems: list[ModelProblem]) -> list[ModelCard]:
    """Cards of the model folders in `root`, newest version of an id first; unusable ones go to `problems`."""
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(ModelProblem(root, f"The model folder {root} cannot be read ({error.strerror or error}); check "
                                     "its permissions."))
        return []
    cards = []
    for folder in folders:
        card = None
        try:
            card = read_card(folder)
            size = card.weights_path.stat().st_size  # missing or cut short is seen here; altered only by verify()
            if size != card.weights["bytes"]:
                raise ModelError(f"The weights of model {card.key} have {size} bytes instead of "
                                 f"{card.weights['bytes']}; the copy in {folder} is incomplete, so get the model "
                                 "again.")
        except HiEndSegError as error:
            problems.append(ModelProblem(folder, str(error), card.key if card is not None else ""))
        else:
            cards.append(card)
    cards.sort(key=lambda card: version_key(card.version), reverse=True)
    cards.sort(key=lambda card: card.id)
    return cards
