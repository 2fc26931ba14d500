"""The volume, the corrected segmentation and the model or encoder that the Adapt section works with, by id."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError
from ..resources import resource
from . import wording
from .catalogue import Catalogue
from .inputs import VolumeFacts, look_at_volume
from .models import ENCODER

if TYPE_CHECKING:
    from ..models.card import ModelCard

_ = wording.translator(__name__)

#: What a new model is made from until another encoder is chosen.
SHIPPED_ENCODER = resource("Encoders") / "torso-ct-tiny-encoder"


class AdaptInputs:
    """look() reads the scene and the models; nothing else here does."""

    def __init__(self, scene: Any, registry: Any, settings: MutableMapping[str, Any]):
        self._scene, self._settings = scene, settings
        self.catalogue = Catalogue(registry, {})        # what is chosen here is not Segment's choice
        self.volume_id: str | None = None
        self.segmentation_id: str | None = None
        self.facts: VolumeFacts | None = None
        self.segmentation_sentence = ""
        self.segmentation_problem = ""
        self.from_encoder = False
        self._volume_said = self._segmentation_said = self._model_said = False      # by the person

    # ------------------------------------------------------------------------------------------ choosing

    def follow(self, segment: Any, compared: bool = False) -> None:
        """Take over what the Segment section works with, as far as the person chose nothing here.

        segment: its state. compared: the model stays the one that was compared with, as long as the case does.
        """
        before = self.volume_id, self.segmentation_id
        if segment.volume_id is not None and (not self._volume_said or self._node(self.volume_id) is None):
            self.volume_id, self._volume_said = segment.volume_id, False
        same = segment.volume_id == self.volume_id
        if self.volume_id != before[0] or not self._segmentation_said or self._node(self.segmentation_id) is None:
            mine = segment.segmentation_id if same else None
            self.segmentation_id = mine or self._segmentation_of_volume()
            self._segmentation_said = False
        if not self._model_said and not (compared and before == (self.volume_id, self.segmentation_id)):
            key = self._made_by() or segment.model_id
            if key is not None:
                self.catalogue.choose(key)

    def choose_volume(self, node_id: str | None) -> bool:
        """True where it is another one; the segmentation then becomes its newest."""
        if node_id == self.volume_id:
            return False
        self.volume_id, self._volume_said = node_id, node_id is not None
        self.segmentation_id, self._segmentation_said = self._segmentation_of_volume(), False
        self._follow_maker()
        return True

    def choose_segmentation(self, node_id: str | None) -> bool:
        if node_id == self.segmentation_id:
            return False
        self.segmentation_id, self._segmentation_said = node_id, node_id is not None
        self._follow_maker()
        return True

    def choose_model(self, id_: str) -> bool:
        before = (self.card, self.from_encoder)
        if self.catalogue.choose(id_):
            self.from_encoder, self._model_said = False, True
        return (self.card, self.from_encoder) != before

    def choose_encoder(self, path: Any) -> bool:
        """A weights file, or the folder (or any file in it) of an encoder; None goes back to the model."""
        before = (self.encoder_path, self.from_encoder)
        if path:
            path = Path(path)
            if path.is_file() and (path.parent / "description.json").is_file():
                path = path.parent
            self._settings[ENCODER] = str(path)
        self.from_encoder = bool(path)
        return (self.encoder_path, self.from_encoder) != before

    @property
    def encoder_path(self) -> str:
        """The encoder that was chosen, at first the one that ships; "" where there is none."""
        path = self._settings.get(ENCODER) or (SHIPPED_ENCODER if SHIPPED_ENCODER.exists() else "")
        return str(path)

    @property
    def card(self) -> ModelCard | None:
        """The model that is taught; None with an encoder."""
        return None if self.from_encoder else self.catalogue.card

    @property
    def dictionary(self) -> list:
        """Names and ids by which an encoder's new structures are called: those of the first model of the list."""
        return list(self.catalogue.cards[0].labels) if self.catalogue.cards else []

    # ------------------------------------------------------------------------------------------ looking

    def look(self) -> None:
        """The nodes and the models as they are now."""
        self.catalogue.refresh()
        self.facts = look_at_volume(self._scene, self.volume_id) if self.volume_id else None
        self.segmentation_sentence = self.segmentation_problem = ""
        if self.segmentation_id is None:
            return
        node = self._node(self.segmentation_id)
        if node is None:
            self.segmentation_problem = _("The segmentation is no longer in the scene; choose another one.")
            return
        try:
            count = node.GetSegmentation().GetNumberOfSegments() if node.GetSegmentation() is not None else 0
        except AttributeError:
            self.segmentation_problem = _("This node is not a segmentation; choose another one.")
            return
        if not count:
            self.segmentation_problem = _('"{name}" holds no segments; choose the corrected segmentation.').format(
                name=node.GetName())
            return
        template = _('{count} segments in "{name}".') if count != 1 else _('{count} segment in "{name}".')
        self.segmentation_sentence = template.format(count=count, name=node.GetName())
        maker = node.GetAttribute("HiEndSeg.Model")
        if maker:
            template = _("It was made by {model}.") if any(card.key == maker for card in self.catalogue.cards) else \
                _("It was made by {model}, which is not installed now.")
            self.segmentation_sentence += " " + template.format(model=maker)
        drawn_on = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
        if self.facts is not None and drawn_on is not None and drawn_on.GetID() != self.volume_id:
            self.segmentation_sentence += " " + _(
                'It was drawn on "{other}", not on "{volume}"; check that they belong together.').format(
                other=drawn_on.GetName(), volume=self.facts.name)

    def obstacle(self) -> str:
        """Why this case cannot be compared or taught; "" where it can."""
        if self.catalogue.missing_package:
            return _("HiEndSeg is not set up yet; open the set-up page.")
        if self.facts is None:
            return _("Choose the volume whose segmentation you corrected.")
        if self.facts.problem:
            return self.facts.problem
        if self.segmentation_id is None:
            return _("Choose the corrected segmentation of this volume.")
        if self.segmentation_problem:
            return self.segmentation_problem
        if self.from_encoder:
            if not self.encoder_path or not Path(self.encoder_path).exists():
                return _("The encoder is not there any more; choose its file or folder again.")
        elif self.card is None:
            return _("No model is installed; add one in the section Models, or start from an encoder.")
        return ""

    def encoder_sentence(self) -> str:
        if not self.encoder_path:
            return _("A new model can be made from a pretrained encoder and this one case; choose the encoder's file.")
        name = Path(self.encoder_path).name
        if not Path(self.encoder_path).exists():
            return _("{name}: not there any more; choose the encoder again.").format(name=name)
        return _("{name}: a new model that knows only what you teach.").format(name=name)

    # ------------------------------------------------------------------------------------------ the scene

    def removed(self, node_id: str) -> bool:
        """A node is gone; True where it was one of these."""
        mine = node_id in (self.volume_id, self.segmentation_id)
        if node_id == self.volume_id:
            self.volume_id = self.facts = None
            self._volume_said = False
        if node_id == self.segmentation_id:
            self.segmentation_id = None
            self._segmentation_said = False
            self.segmentation_sentence = self.segmentation_problem = ""
        return mine

    def clear(self) -> None:
        self.volume_id = self.segmentation_id = self.facts = None
        self.segmentation_sentence = self.segmentation_problem = ""
        self._volume_said = self._segmentation_said = self._model_said = False

    # ------------------------------------------------------------------------------------------ inside

    def _follow_maker(self) -> None:
        """The model that made the chosen segmentation is the one to teach."""
        key = self._made_by()
        if key is not None and not self.from_encoder:
            self.catalogue.choose(key)

    def _made_by(self) -> str | None:
        """Key of the installed model that made the segmentation."""
        node = self._node(self.segmentation_id)
        key = node.GetAttribute("HiEndSeg.Model") if node is not None else None
        return key if key and any(card.key == key for card in self.catalogue.cards) else None

    def _segmentation_of_volume(self) -> str | None:
        """The newest result of the volume, else the newest segmentation that was drawn on it."""
        volume = self._node(self.volume_id)
        if volume is None:
            return None
        try:
            from ..bridge.results import drawn_on, results_of

            found = results_of(volume) or drawn_on(volume)
        except (HiEndSegError, ModuleNotFoundError):
            return None
        return found[-1].GetID() if found else None

    def _node(self, node_id: str | None) -> Any:
        return self._scene.GetNodeByID(node_id) if node_id else None
