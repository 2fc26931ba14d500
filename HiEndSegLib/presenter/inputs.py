"""What a chosen volume and region are, in sentences, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import HiEndSegError, InputError
from . import wording

_ = wording.translator(__name__)


@dataclass(frozen=True)
class VolumeFacts:
    """A volume node as it is now. shape, spacing (mm): along R, A, S, to the nearest axis; of a usable volume only.

    modality: "CT", "MR" or "unknown"; is_hu, modality_sentence: as `geometry.modality` says. parent: "none", "linear"
    or "nonlinear". frames: time points where it is the proxy of a sequence. problem: why it cannot be segmented.
    """

    id: str
    name: str
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    modality: str = "unknown"
    is_hu: bool = False
    modality_sentence: str = ""
    parent: str = "none"
    transform_name: str = ""
    frames: int = 0
    problem: str = ""

    @property
    def sentence(self) -> str:
        if self.problem:
            return self.problem
        parts = [_("{shape} voxels of {spacing} mm (right, front, up).").format(
            shape=" x ".join(map(str, self.shape)), spacing=" x ".join(f"{s:.3g}" for s in self.spacing))]
        if self.parent == "nonlinear":
            parts.append(_('It lies under the non-linear transform "{transform}".').format(
                transform=self.transform_name))
        if self.frames > 1:
            parts.append(_("It shows one of {count} time points.").format(count=self.frames))
        return " ".join(parts)

    def warning(self, card: Any) -> str:
        """What makes a model of this card doubtful here; "" where nothing does."""
        if self.problem or card is None:
            return ""
        if card.modality == "CT" and not (self.modality == "CT" and self.is_hu):
            return _("{what} This model was made for CT in Hounsfield units, so do not rely on its result.").format(
                what=self.modality_sentence)
        if card.modality != "CT" and self.modality == "CT":
            return _("{what} This model was made for {modality}, so do not rely on its result.").format(
                what=self.modality_sentence, modality=card.modality)
        return ""


class Inputs:
    """The chosen volume and region by id, and what they are. look() reads the scene; nothing else here does."""

    def __init__(self, scene: Any):
        self._scene = scene
        self.volume_id: str | None = None
        self.roi_id: str | None = None
        self.facts: VolumeFacts | None = None
        self.region: RegionFacts | None = None

    def look(self) -> None:
        """Both nodes as they are now."""
        self.facts = look_at_volume(self._scene, self.volume_id) if self.volume_id else None
        self.region = look_at_region(self._scene, self.roi_id, self.volume_id) if self.roi_id else None

    def removed(self, node_id: str) -> bool:
        """A node is gone; True where it was one of these."""
        mine = node_id in (self.volume_id, self.roi_id)
        self.volume_id = None if node_id == self.volume_id else self.volume_id
        self.roi_id = None if node_id == self.roi_id else self.roi_id
        return mine

    def clear(self) -> None:
        self.volume_id = self.roi_id = self.facts = self.region = None

    @property
    def volume_obstacle(self) -> str:
        if self.facts is None:
            return _("Choose a volume to segment.")
        return self.facts.problem

    @property
    def region_obstacle(self) -> str:
        return "" if self.region is None or self.region.usable else self.region.sentence


def look_at_volume(scene: Any, volume_id: str) -> VolumeFacts:
    """The facts; whatever is wrong becomes `problem`. Reads a sample of the voxels and copies none."""
    node = scene.GetNodeByID(volume_id)
    if node is None:
        return VolumeFacts(volume_id, "", problem=_("The volume is no longer in the scene; choose another one."))
    name = node.GetName() or volume_id
    try:
        from ..bridge.sequences import frame_count
        from ..bridge.volumes import parent_kind, volume_view
        from ..geometry.modality import guess_modality

        view = volume_view(node)
        guess = guess_modality(view)
        parent = parent_kind(node)
        shape, spacing = _along_ras(view.shape, view.ijk_to_ras)
        return VolumeFacts(volume_id, name, shape, spacing, guess.kind, guess.is_hu, guess.sentence, parent,
                           node.GetParentTransformNode().GetName() if parent != "none" else "", frame_count(node))
    except HiEndSegError as error:
        return VolumeFacts(volume_id, name, problem=str(error))
    except ModuleNotFoundError as error:
        return VolumeFacts(volume_id, name, problem=_(
            "HiEndSeg is not set up yet ({package} is missing); open the set-up page.").format(package=error.name))


def plan_job(engine: Any, scene: Any, volume_id: str, card: Any, device: str) -> Any:
    """Ask the engine for the memory plan of a volume; only its lattice and type are handed over."""
    from ..bridge.volumes import volume_view

    node = scene.GetNodeByID(volume_id)
    if node is None:
        raise InputError(_("The volume is no longer in the scene; choose another one."))
    return engine.submit_plan(volume_view(node), model=card, device=device)


@dataclass(frozen=True)
class RegionFacts:
    """A region of interest against a volume. box: ((R0, R1), (A0, A1), (S0, S1)), mm, or None where it is unusable."""

    box: tuple | None
    sentence: str
    usable: bool


def look_at_region(scene: Any, roi_id: str, volume_id: str | None) -> RegionFacts:
    """The box in the volume's own RAS; says where the region was rotated, or lies outside the volume."""
    roi = scene.GetNodeByID(roi_id)
    if roi is None:
        return RegionFacts(None, _("The region of interest is no longer in the scene; choose another one or none."),
                           False)
    volume = scene.GetNodeByID(volume_id) if volume_id else None
    if volume is None:
        return RegionFacts(None, _("Choose a volume for this region of interest."), False)
    try:
        from ..bridge.volumes import box_of_roi, roi_is_rotated, volume_view
        from ..operations.roi import check_roi, extent_sentence, roi_box

        view = volume_view(volume)
        box = check_roi(box_of_roi(roi, volume))
        low, high = roi_box(box, view.ras_to_ijk, view.shape)
        if (high <= low).any():
            return RegionFacts(box, _(
                'The region of interest lies outside "{volume}", which covers {extent} mm; move it, or choose none.'
            ).format(volume=volume.GetName(), extent=extent_sentence(view)), False)
        size = " x ".join(f"{last - first:.0f}" for first, last in box)
        if roi_is_rotated(roi, volume):
            return RegionFacts(box, _(
                "The region of interest is rotated; the box around it along the patient's axes is used ({size} mm)."
            ).format(size=size), True)
        return RegionFacts(box, _("Only inside the region of interest ({size} mm).").format(size=size), True)
    except HiEndSegError as error:
        return RegionFacts(None, str(error), False)


def _along_ras(shape: Any, matrix: Any) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing along R, A, S: each world axis gets the voxel axis that is nearest to it."""
    import itertools

    import numpy as np

    columns = np.asarray(matrix)[:3, :3]
    length = np.linalg.norm(columns, axis=0)
    best = max(itertools.permutations(range(3)),
               key=lambda order: sum(abs(columns[world, axis]) / length[axis] for world, axis in enumerate(order)))
    return tuple(int(shape[axis]) for axis in best), tuple(float(length[axis]) for axis in best)
