"""`Volume`: voxels in `[i, j, k]` order and the matrix that places their centres in the patient."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import InputError

#: Below this volume of the parallelepiped spanned by the unit axes, the axes are taken as lying in one plane.
_FLAT = 1e-3


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image or label map.

    array: (I, J, K) voxels, any real dtype; a CT holds Hounsfield units.
    ijk_to_ras: (4, 4) float64, millimetres, maps voxel *centres* to RAS, as nibabel's `affine`.
    name: what a person calls it (a file or series name).
    meta: "modality" ("CT", "MR", …), "source" (a phrase), "notes" (sentences on what was changed while reading),
        "beyond" (a label map's value outside of its lattice, where that is known).
    """

    array: np.ndarray
    ijk_to_ras: np.ndarray
    name: str = ""
    meta: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        matrix = np.array(self.ijk_to_ras, dtype=np.float64)
        matrix.setflags(write=False)
        object.__setattr__(self, "array", np.asanyarray(self.array))
        object.__setattr__(self, "ijk_to_ras", matrix)

    @property
    def shape(self) -> tuple[int, ...]:
        """(I, J, K)."""
        return self.array.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxel centres along i, j and k."""
        return tuple(float(s) for s in np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres (right for sheared lattices too)."""
        return float(abs(np.linalg.det(self.ijk_to_ras[:3, :3]))) / 1000.0

    @property
    def ras_to_ijk(self) -> np.ndarray:
        """(4, 4) float64, the inverse of `ijk_to_ras`."""
        return np.linalg.inv(self.ijk_to_ras)

    @property
    def axis_codes(self) -> str:
        """Where i, j and k point to, for example "LPS": i to the left, j to the back, k to the head."""
        from nibabel import aff2axcodes     # slow to import, and not there before a Slicer was set up

        return "".join(code or "?" for code in aff2axcodes(self.ijk_to_ras))

    @property
    def notes(self) -> list[str]:
        """Sentences on what was changed or assumed while the volume was made; a copy."""
        return list(self.meta.get("notes", ()))

    def with_array(self, array: np.ndarray, name: str | None = None) -> Volume:
        """Another array of the same shape on this lattice (meta is copied)."""
        array = np.asanyarray(array)
        if array.shape != self.shape:
            raise ValueError(f"an array of shape {array.shape} does not fit the lattice {self.shape}")
        return replace(self, array=array, name=self.name if name is None else name, meta=dict(self.meta))

    def with_note(self, sentence: str) -> Volume:
        """The same volume with one more sentence in meta["notes"]."""
        return replace(self, meta={**self.meta, "notes": [*self.notes, sentence]})

    def same_lattice(self, other: Volume, tolerance: float = 1e-6) -> bool:
        """Same shape, and matrices that differ by at most `tolerance` (mm) in every entry."""
        return self.shape == other.shape and bool(
            np.allclose(self.ijk_to_ras, other.ijk_to_ras, rtol=0.0, atol=tolerance))


def check_volume(volume: Volume) -> Volume:
    """Refuse what no later step can work on; make the rest finite.

    NaN and infinite voxels become the smallest finite value (with a note), bool becomes uint8, float16 and float64
    become float32. The input is never written to.
    Raises InputError: not 3D, empty, colour or complex voxels, a matrix that is not finite, has a zero spacing or axes
    in one plane, or no finite voxel at all.
    """
    array, matrix, name = volume.array, volume.ijk_to_ras, volume.name or "The volume"
    if array.ndim != 3:
        raise InputError(f"{name} has {array.ndim} dimensions {array.shape}; give a single 3D volume.")
    if array.size == 0:
        raise InputError(f"{name} has no voxels (shape {array.shape}); export it again.")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} holds colour or complex voxels ({array.dtype}); give a grey-scale volume.")
    check_matrix(matrix, name)
    if array.dtype == bool:
        return volume.with_array(array.astype(np.uint8))
    if array.dtype.kind != "f":
        return volume
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):    # a float64 beyond float32's range becomes infinite, and is handled below
            array = array.astype(np.float32)
        volume = volume.with_array(array)
    finite = np.isfinite(array)
    bad = array.size - int(np.count_nonzero(finite))
    if not bad:
        return volume
    if bad == array.size:
        raise InputError(f"{name} holds no finite voxel (all NaN or infinite); export it again.")
    lowest = float(np.min(array, where=finite, initial=np.inf))
    return volume.with_array(np.where(finite, array, np.float32(lowest))).with_note(
        f"{bad} voxels that were NaN or infinite were set to the smallest finite value, {lowest:g}.")


def check_matrix(matrix: np.ndarray, name: str) -> None:
    """Raise InputError unless `matrix` is a finite, invertible (4, 4) affine; `name` starts the sentence."""
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InputError(f"{name} has a position matrix that is not a finite 4x4 affine; export it again.")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if (spacing <= 0).any():
        raise InputError(f"{name} has a voxel spacing of zero ({_numbers(spacing)} mm); export it again.")
    if abs(np.linalg.det(matrix[:3, :3] / spacing)) < _FLAT:
        raise InputError(f"{name} has axes that lie in one plane, so its voxels have no volume; export it again.")


def _numbers(values) -> str:
    return " x ".join(f"{float(v):g}" for v in values)
