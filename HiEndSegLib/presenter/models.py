"""`ModelsPresenter`: add, verify, export and delete models, and recognize weights from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError
from . import wording
from .background import Background
from .catalogue import Catalogue
from .signals import Signal
from .state import Choice, ModelRow, Question

if TYPE_CHECKING:
    from ..engine.interface import Engine, Job
    from ..models.card import ModelCard
    from ..models.registry import Registry

_ = wording.translator(__name__)

#: Key in the settings: a weights file that holds an encoder to adapt from.
ENCODER = "encoder"
_DESCRIPTION = "description.json"               # of an encoder's folder, see models/encoders.py
#: Endings of a file with weights from elsewhere.
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


@dataclass(frozen=True)
class ModelsState:
    """rows: all usable models. problems: folders that are not, in sentences. headline: what was done last.

    failed: whether the headline tells of something that went wrong. folder: where the person's own models lie.
    encoder_sentence: what the encoder file that was pointed at can and cannot do.
    """

    rows: tuple[ModelRow, ...] = ()
    problems: tuple[str, ...] = ()
    headline: str = ""
    failed: bool = False
    busy: bool = False
    question: Question | None = None
    folder: str = ""
    encoder_sentence: str = ""


class ModelsPresenter:
    """Actions return at once; copying and hashing go on beside, and `tick()` says when they are over.

    changed: emitted whenever `state` is another. models_changed: when the list is (connect `SegmentPresenter.refresh`).
    """

    def __init__(self, *, registry: Registry, engine: Engine, settings: MutableMapping[str, Any] | None = None):
        self._registry, self._engine = registry, engine
        self._settings = {} if settings is None else settings
        self._catalogue = Catalogue(registry, {})
        self._background = Background()
        self._job: Job | None = None
        self._then: Callable[[Job], None] = self._recognized        # of the job
        self._looked_at = ""
        self._number = 0
        self._asked: tuple[str, str] = ("", "")         # what the open question is about: action, id
        self.changed, self.models_changed = Signal(), Signal()
        self.state = ModelsState(folder=str(registry.user))

    def refresh(self) -> None:
        """Read the folders again."""
        self._list()
        self._show()

    # ------------------------------------------------------------------------------------------ actions

    def add(self, path: Any) -> None:
        """A model folder, a .zip of one, or any file in it; an encoder's folder or a weights file from elsewhere are
        only looked at, and remembered where a model can be adapted from them."""
        path = Path(path)
        if path.is_file() and path.suffix.lower() in (".json", *WEIGHTS) and any(
                (path.parent / name).is_file() for name in ("card.json", _DESCRIPTION)):
            path = path.parent
        if path.is_file() and path.suffix.lower() in WEIGHTS:
            self._recognize(path)
        elif (path / _DESCRIPTION).is_file() and not (path / "card.json").is_file():
            self._look_at_encoder(path)
        else:
            self._work(_("Adding {name}…").format(name=path.name), lambda cancel: self._registry.add(path, cancel),
                       lambda card: _("{title} ({id}) was added.").format(title=card.title, id=card.key))

    def verify(self, id_: str) -> None:
        """Check card, size and checksum of one model."""
        self._work(_("Verifying {name}…").format(name=id_), lambda cancel: self._registry.verify(id_, cancel),
                   lambda card: _("{title} is sound: card and weights are as they were made.").format(title=card.title))

    def delete(self, id_: str) -> None:
        """Ask, and then delete one of the person's own models."""
        if self.state.busy:
            return
        card = self._catalogue.find(id_)
        if card is not None and self._registry.is_shipped(card):
            self._show(headline=_("{title} came with HiEndSeg and stays; only your own models can be deleted.").format(
                title=card.title), failed=True)
            return
        needed = self._registry.needed_by(card) if card is not None else []
        if needed:
            self._show(headline=_("{title} is needed by what was adapted from it ({names}); delete that first.").format(
                title=card.title, names=", ".join(version.title for version in needed)), failed=True)
            return
        self._ask("delete", id_, _("Delete {name} from your model folder? This cannot be undone.").format(
            name=card.title if card is not None else id_), _("Delete"))

    def export(self, id_: str, path: Any, *, whole: bool = False) -> None:
        """One file of a model or version for other people; the face has asked about a file that is there already.
        whole: of a version everything it needs, instead of its changes alone."""
        def export(cancel: Any) -> Any:
            from ..models.versions import export_version

            return export_version(self._registry.get(id_), path, overwrite=True, cancel=cancel)

        def words(written: Any) -> str:
            card = self._catalogue.find(id_)
            if card is None or not card.is_version:
                return _("{file} was written.").format(file=written.name)
            base = card.adaptation["base"]
            return _("{file} was written. It holds changes only: whoever adds it needs the model {base}.").format(
                file=written.name, base=f"{base['id']}@{base['version']}")

        card = self._catalogue.find(id_)
        headline = _("Exporting {name}…").format(name=id_)
        if whole and card is not None and card.is_version:
            # Putting the weights together takes PyTorch, which is the engine's.
            self._ask_engine(headline, lambda: self._engine.submit_export(str(card.folder), path), self._exported)
        else:
            self._work(headline, export, words)

    def forget_teaching(self, id_: str) -> None:
        """Ask, and then delete the cases that are kept beside a version; the version stays."""
        card = self._catalogue.find(id_)
        if card is not None and not self.state.busy:
            self._ask("forget", card.key, _(
                "Delete the parts of images that are kept beside {name}, and what other versions keep of the same "
                "cases? The models stay as they are; what is taught to them next may then undo some of what these "
                "cases taught.").format(name=card.title), _("Delete images"))

    def answer(self, choice: str) -> None:
        """Answer `state.question`."""
        question = self.state.question
        if question is None:
            return
        (action, id_), self._asked = self._asked, ("", "")
        self._show(question=None)
        if choice == action == "forget":
            self._work(_("Deleting…"), lambda _cancel: _forget(self._registry, id_),
                       lambda card: _("{title} keeps no parts of images any more.").format(title=card.title))
        elif choice == action == "delete":
            self._work(_("Deleting {name}…").format(name=id_), lambda _cancel: self._registry.remove(id_),
                       lambda _folder: _("{name} was deleted.").format(name=id_))

    def folder(self, id_: str | None = None) -> str:
        """The folder of a model to open in a file browser; without id the person's own model folder, made if needed."""
        card = self._catalogue.find(id_) if id_ else None
        if card is not None and card.folder is not None:
            return str(card.folder)
        try:
            Path(self._registry.user).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._show(headline=_("The model folder cannot be made ({why}); check its permissions.").format(
                why=error.strerror or error), failed=True)
        return str(self._registry.user)

    def tick(self) -> None:
        """Take in what is over. Cheap when nothing goes on."""
        self._background.poll()
        if self._job is not None:
            self._job.poll()
            if self._job.done:
                job, self._job = self._job, None
                self._then(job)

    def wait(self, timeout: float = 60.0) -> None:
        """For scripts: until what was asked for is over."""
        self._background.wait(timeout)
        if self._job is not None:
            try:
                self._job.result(timeout)
            except (TimeoutError, HiEndSegError):       # told by the tick
                pass
        self.tick()

    def cancel(self) -> None:
        """Stop what goes on; nothing half-done is left."""
        self._background.cancel()
        if self._job is not None:
            self._job.cancel()

    def close(self) -> None:
        self.changed.disconnect_all()
        self.models_changed.disconnect_all()
        self._background.drop()
        self._job = None

    # ------------------------------------------------------------------------------------------ inside

    def _ask(self, action: str, id_: str, text: str, button: str) -> None:
        self._number += 1
        self._asked = (action, id_)
        self._show(question=Question(self._number, action, text,
                                     (Choice(action, button), Choice("cancel", _("Cancel")))))

    def _work(self, headline: str, function: Callable, words: Callable[[Any], str]) -> None:
        """`function` beside everything else; its result in `words`. One thing at a time."""
        if self.state.busy:
            return

        def then(result: Any, error: HiEndSegError | None) -> None:
            self._list()
            self._show(headline=words(result) if error is None else str(error), failed=error is not None, busy=False)
            self.models_changed.emit()

        self._show(headline=headline, failed=False, busy=True)
        self._background.start(function, then)

    def _look_at_encoder(self, folder: Path) -> None:
        """A folder that describes an encoder made by HiEndSeg."""
        def look(cancel: Any) -> Any:
            from ..models.card import verify_weights
            from ..models.encoders import read_encoder

            card = read_encoder(folder)
            verify_weights(card, cancel)
            return card

        def then(card: Any, error: HiEndSegError | None) -> None:
            if error is not None:
                self._show(headline=str(error), failed=True, busy=False)
                return
            self._found_encoder(str(folder), _("{title} is an encoder").format(title=card.title))

        if not self.state.busy:
            self._show(headline=_("Looking at {name}…").format(name=folder.name), failed=False, busy=True)
            self._background.start(look, then)

    def _found_encoder(self, path: str, what: str) -> None:
        self._settings[ENCODER] = path
        sentence = _("{what}: a model can be adapted from it with one labeled case, but without a trained head it "
                     "cannot name any structure by itself.").format(what=what)
        self._show(headline=sentence, failed=False, busy=False, encoder_sentence=sentence)

    def _recognize(self, path: Path) -> None:
        def submit() -> Job:
            self._looked_at = str(path)
            return self._engine.submit_recognize(path)

        self._ask_engine(_("Looking at {name}…").format(name=path.name), submit, self._recognized)

    def _ask_engine(self, headline: str, submit: Callable[[], Job], then: Callable[[Job], None]) -> None:
        """A job of the engine's; `then` takes it when it is over. One thing at a time."""
        if self.state.busy:
            return
        try:
            self._job, self._then = submit(), then
        except HiEndSegError as error:
            self._show(headline=str(error), failed=True)
            return
        self._show(headline=headline, failed=False, busy=True)

    def _exported(self, job: Job) -> None:
        if job.error is not None:
            self._show(headline=str(job.error), failed=True, busy=False)
            return
        self._show(busy=False, headline=_(
            "{file} was written. It is a model of its own: whoever adds it needs no other.").format(
                file=Path(job.result()).name))

    def _recognized(self, job: Job) -> None:
        if job.error is not None:
            self._show(headline=str(job.error), failed=True, busy=False)
            return
        facts = job.result()
        words = {"file": facts["file"], "shape": facts["shape"]}
        if facts["kind"] in ("hi-end-mae", "encoder"):
            self._found_encoder(self._looked_at, _("{file} holds the Hi-End-MAE encoder ({shape})").format(**words))
        elif facts["kind"] == "unetr":
            self._show(headline=_("{file} holds a fine-tuned UNETR without a card, so nobody knows which structures it "
                                  "names; ask its author for a model folder with a card.json.").format(**words),
                       failed=True, busy=False)
        else:
            self._show(headline=_("{file} holds weights of a network that HiEndSeg does not know; add a model folder "
                                  "with a card.json, or the file published with Hi-End-MAE.").format(**words),
                       failed=True, busy=False)

    def _list(self) -> None:
        self._catalogue.refresh()

    def _show(self, **changes: Any) -> None:
        state = replace(self.state, rows=self._catalogue.rows(lambda card: None), problems=self._catalogue.problems,
                        **changes)
        if state != self.state:
            self.state = state
            self.changed.emit()


def _forget(registry: Registry, id_: str) -> ModelCard:
    from ..models.teaching import forget_cases

    card = registry.get(id_)
    forget_cases(card, registry.list())
    return card
