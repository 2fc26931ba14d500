"""The labelled cases that `training.adaptation` teaches and scores: real volumes as they are, and invented persons.

A case is a volume with a label map on its own lattice, in the values of `training.structures` (new structures from 20
up), 0 where certainly none of the case's structures is, 255 where nobody said. Only a case's `annotated` structures
are scored in it.

Kinds of label: "expert", "program" (another segmentation program's result), "auto" (thresholds and morphology; not
checked by a clinician), "own" (the model's own answer on the CT as it is, for the same person's image in another
acquisition: a score against it is agreement with that answer), "drawn" (invented persons: expert organ shapes,
everything around them invented).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.body import body_mask
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.reading import read_volume
from HiEndSegLib.geometry.resample import resample_like, to_ras_axes
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.loading import Model
from HiEndSegLib.operations.segment import segment

from .adaptation_looks import AS_IS, with_look
from .cases import structure_of
from .lattice import SPACING
from .oneshot_cases import EXPERT_ORGANS, UNREADABLE
from .rendering import synthesize_image
from .structures import STRUCTURES, VALUE, certain_labels
from .tissues import draw_look, possible_classes

UNKNOWN = 255
#: Structures the default model does not know. Their labels are made by `body_fat`.
NEW = (Label(20, "subcutaneous_fat", "Subcutaneous fat", (230, 220, 70)),
       Label(21, "deep_fat", "Fat inside the trunk's wall", (240, 190, 60)))
LEGEND = tuple(Label(s.value, s.id, s.name, s.color, s.terminology, s.largest_component) for s in STRUCTURES) + NEW
BY_ID = {label.id: label for label in LEGEND}
KINDS = {"ct-abdomen-01": "program", "ct-abdomen-02": "auto", "ct-chest-01": "auto", "ct-abdomen-08": "expert"}
#: Real cases that no training of the default model has seen.
NEVER_TRAINED = ("ct-abdomen-02", "ct-chest-01", "ct-abdomen-09")
#: What the model's own answer has less of says nothing.
OWN_ML = 5.0
#: First part of the random state of invented persons; training used 0 and 1.
PERSON_SEED = 501

_PERSON = re.compile(r"person-(\w+)-(\d+)")


@dataclass(frozen=True)
class LabelledCase:
    """volume: HU. labels: uint8 on its lattice, values of LEGEND, 255 open. annotated: ids that can be scored."""

    name: str
    look: str
    volume: Volume
    labels: Volume
    annotated: tuple[str, ...]
    kind: str

    @property
    def legend(self) -> list[Label]:
        """The labels of the structures annotated here."""
        return [BY_ID[name] for name in self.annotated]

    def mask(self, structure: str) -> np.ndarray:
        return self.labels.array == BY_ID[structure].value


class Cases:
    """Cases by name. data: folder with one subfolder a case; cache: folder for what is made when needed.
    model: whose answers are the labels of "own:" cases.

    Names: a folder of `data`; the same with "+fat" (labels of `body_fat` beside those there), with "fat:" before it
    (those alone) or "own:" (the model's answer on the CT as it is); "person-MAP-N", an invented person around the
    expert organ map `labels-multiorgan-MAP`.
    """

    def __init__(self, data: Path, cache: Path, model: Model | None = None):
        self.data, self.cache, self.model = Path(data), Path(cache), model

    def get(self, name: str, look: str = AS_IS) -> LabelledCase:
        """The case as that acquisition shows it. Raises InputError: no such case, or one without labels."""
        volume, labels, annotated, kind = self._person(name) if _PERSON.fullmatch(name) else self._real(name)
        return LabelledCase(name, look, with_look(volume, look), labels, annotated, kind)

    def _real(self, name: str) -> tuple[Volume, Volume, tuple[str, ...], str]:
        alone, both = name.startswith("fat:"), name.endswith("+fat")
        if name.startswith("own:"):
            return self._own(name)
        folder = self.data / person_of(name)
        volume = read_volume(folder / "image.nii.gz")
        volume = Volume(volume.array, volume.ijk_to_ras, folder.name, {"modality": "CT"})
        array, annotated = np.zeros(volume.shape, np.uint8), ()
        if not alone:
            array, annotated = _drawn(folder, volume)
        if alone or both:
            fat = body_fat(volume)
            array = np.where((fat > 0) & ((array == 0) | (array == UNKNOWN)), fat, array).astype(np.uint8)
            annotated += tuple(label.id for label in NEW)
        if not annotated:
            raise InputError(f"{folder} has no labels; choose a case that has, or its fat (fat:{folder.name}).")
        kind = "auto" if alone else KINDS.get(folder.name, "of unknown origin")
        return volume, volume.with_array(array), annotated, kind

    def _own(self, name: str) -> tuple[Volume, Volume, tuple[str, ...], str]:
        if self.model is None:
            raise InputError(f"{name} has the model's answers as labels, and no model was given.")
        folder = self.data / person_of(name)
        volume = read_volume(folder / "image.nii.gz")
        volume = Volume(volume.array, volume.ijk_to_ras, folder.name, {"modality": "CT"})
        path = self.cache / f"own-{folder.name}-{self.model.card.checksum[:12]}.npz"
        if not path.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            result = segment(self.model, volume, device=str(self.model.device))
            table = np.zeros(256, np.uint8)
            for label in result.legend:
                table[label.value] = VALUE.get(label.id, 0)
            with atomic_target(path) as temporary:
                np.savez_compressed(temporary, labels=table[result.labels.array])
        labels = _stored(path)["labels"]
        present = tuple(s.id for s in STRUCTURES if (labels == s.value).sum() * volume.voxel_ml >= OWN_ML)
        return volume, volume.with_array(labels), present, "own"

    def _person(self, name: str) -> tuple[Volume, Volume, tuple[str, ...], str]:
        path = self.cache / f"{name}.npz"
        if not path.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            image, labels = invented_person(self.data, name)
            with atomic_target(path) as temporary:
                np.savez_compressed(temporary, image=image, labels=labels)
        stored = _stored(path)
        image, labels = stored["image"], stored["labels"]
        affine = np.diag([SPACING, SPACING, SPACING, 1.0])
        present = [s.id for s in STRUCTURES if (labels == s.value).any()]
        volume = Volume(image, affine, name, {"modality": "CT"})
        return volume, Volume(labels, affine, name), tuple(present), "drawn"


def person_of(name: str) -> str:
    """Who a case shows: two names of one person give the same."""
    return name.removeprefix("fat:").removeprefix("own:").removesuffix("+fat")


def _stored(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except UNREADABLE as error:
        raise InputError(f"{path} is damaged; remove it, and it is made again.") from error


def _drawn(folder: Path, volume: Volume) -> tuple[np.ndarray, tuple[str, ...]]:
    """Label values of ours on the volume's lattice and the structures they hold; nothing where there is no map."""
    stem = next((s for s in ("labels_auto", "labels") if (folder / f"{s}.nii.gz").is_file()), None)
    if stem is None:
        return np.zeros(volume.shape, np.uint8), ()
    names = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    table, found = np.zeros(256, np.uint8), []
    table[UNKNOWN] = UNKNOWN
    for value, name in names.items():
        structure = structure_of(name)
        if int(value) in (0, UNKNOWN):
            continue
        # Two structures drawn as one say that it is one of the two.
        table[int(value)] = UNKNOWN if name == "stomach_and_duodenum" else VALUE[structure]
        if table[int(value)] not in (0, UNKNOWN) and structure not in found:
            found.append(structure)
    labels = read_volume(folder / f"{stem}.nii.gz")
    if not labels.same_lattice(volume, 1e-3):
        labels = resample_like(labels, volume, order=0, fill=UNKNOWN)
    return table[labels.array.astype(np.uint8)], tuple(found)


# --------------------------------------------------------------------------------------------------- invented persons


@lru_cache(maxsize=1)
def _template(data: Path):
    from .template import load_template

    return load_template(data)


@lru_cache(maxsize=4)
def _organs(data: Path, number: str) -> np.ndarray:
    from .synthesis import expert_organs

    return expert_organs(data / f"labels-multiorgan-{number}" / "labels.nii.gz")


def invented_person(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """HU (I, J, K) int16 at 3 mm, RAS+, and its labels; "person-MAP-N" fixes both.

    As `training.synthesis` does it, with a random state of its own: shape and position of the organs, the invented rest
    and the picture are new, the expert's map was used in training. Drawn again (at most five times) until all of the
    map's organs are in view. One protocol for all: portal venous phase, the same dose, slices and kernel; how far a
    tissue takes contrast up, and what is in stomach and bowel, differs from person to person.
    """
    from .synthesis import invent

    number, which = _PERSON.fullmatch(name).groups()
    organs = _organs(data, number)
    wanted = [VALUE[s] for s in EXPERT_ORGANS if (organs == VALUE[s]).any()]
    for attempt in range(5):
        rng = np.random.default_rng((PERSON_SEED, int(number), int(which), attempt))
        fine = invent(organs, _template(data), rng)
        shares = [(fine == v).sum() / (organs == v).sum() for v in wanted]
        if min(shares) > 0.5:
            break
    labels = certain_labels(possible_classes(fine), UNKNOWN)
    look = replace(draw_look(rng, phase="portal"), noise_hu=10.0, slice_mm=3.0, sharp=0.0)
    return synthesize_image(fine, rng, look=look), labels


# ------------------------------------------------------------------------------------------------------------ body fat


def body_fat(volume: Volume) -> np.ndarray:
    """Fat under the skin (20) and inside the trunk's wall (21), uint8 on the volume's lattice; else 0.

    Thresholds and morphology alone (labels of kind "auto", not checked by a clinician): the image is smoothed by 1 mm;
    fat is -190 to -30 HU within the body, 4 mm and more below its surface. In each axial slice everything else in the
    body is closed by 15 mm and its holes are filled: that is the wall with its contents; its largest piece is kept and
    the others if larger than 10 cm2 (thighs). Fat outside is under the skin, fat inside is deep; pieces below 1 ml go.
    """
    ras = to_ras_axes(volume)
    spacing = ras.spacing
    hu = ndimage.gaussian_filter(ras.array.astype(np.float32), [1.0 / s for s in spacing], truncate=3)
    body = body_mask(ras)
    fat = np.zeros(ras.shape, np.uint8)
    for k in range(ras.shape[2]):
        fat[:, :, k] = _fat_of_slice(hu[:, :, k], body[:, :, k], spacing[:2])
    for label in NEW:
        pieces, count = ndimage.label(fat == label.value)
        small = np.bincount(pieces.ravel(), minlength=count + 1) * ras.voxel_ml < 1.0
        small[0] = False
        fat[small[pieces]] = 0
    result = volume.with_array(np.zeros(volume.shape, np.uint8))
    to_ras_axes(result).array[...] = fat                # a view of the same voxels
    return result.array


def _fat_of_slice(hu: np.ndarray, body: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    depth = ndimage.distance_transform_edt(np.pad(body, 1), sampling=spacing)[1:-1, 1:-1]
    within = body & (depth > 4.0)
    lean = within & ((hu > -30) | (hu < -190))
    if max(spacing) < 2.0:                              # vessels under the skin are no wall; coarser, a wall would go
        lean = ndimage.binary_opening(lean)
    if not lean.any():
        return np.where(within & (hu >= -190) & (hu <= -30), NEW[0].value, 0).astype(np.uint8)
    wide = int(np.ceil(16.0 / min(spacing)))
    lean = np.pad(lean, wide)
    closed = ndimage.distance_transform_edt(~lean, sampling=spacing) <= 15.0
    closed = ndimage.distance_transform_edt(closed, sampling=spacing) > 15.0
    inside = ndimage.binary_fill_holes(closed | lean)[wide:-wide, wide:-wide]
    pieces, _ = ndimage.label(inside)
    area = np.bincount(pieces.ravel()) * spacing[0] * spacing[1]
    area[0] = 0
    keep = (area == area.max()) | (area > 1000.0)
    keep[0] = False
    inside = keep[pieces]
    is_fat = within & (hu >= -190) & (hu <= -30)
    return np.where(is_fat, np.where(inside, NEW[1].value, NEW[0].value), 0).astype(np.uint8)
