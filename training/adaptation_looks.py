"""Acquisitions that a CT model has not seen: the same body as another machine, dose or contrast might show it.

Each is computed from a CT in Hounsfield units, by the same rule for every person, so that who is taught and who is
scored differ in person alone. They are no simulations of physics: an MR-like image made by a lookup table of CT values
has MR's contrasts, not its artefacts. Noise differs from person to person and follows from the name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from HiEndSegLib.errors import OptionError
from HiEndSegLib.geometry.volume import Volume

from .rendering import smooth_noise

AS_IS = "as-is"
_AXES = (0, 1, 2)


def _noise(volume: Volume, hu: float, rng: np.random.Generator, grain_mm: float = 2.5) -> np.ndarray:
    """Noise of `hu` standard deviation whose grain is the same in mm on every lattice."""
    noise = rng.standard_normal(volume.shape, np.float32)
    noise = ndimage.gaussian_filter(noise, [0.5 * grain_mm / s for s in volume.spacing], truncate=3)
    return noise * np.float32(hu / max(float(noise.std()), 1e-6))


def _shading(volume: Volume, mm: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth field, mean 0, standard deviation 1, that changes over about `mm`."""
    thin = tuple(max(4, int(np.ceil(n * s / 12.0))) for n, s in zip(volume.shape, volume.spacing))
    field = smooth_noise(thin, mm / 12.0, rng)
    field = (field - field.mean()) / max(float(field.std()), 1e-6)
    for axis in _AXES:                                   # linear, axis by axis, onto the lattice
        where = np.linspace(0, thin[axis] - 1, volume.shape[axis])
        low = np.minimum(where.astype(int), thin[axis] - 2)
        part = (where - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in _AXES])
        field = np.take(field, low, axis) * (1 - part) + np.take(field, low + 1, axis) * part
    return field


def _slices(volume: Volume, array: np.ndarray, mm: float) -> np.ndarray:
    """Slices of `mm` along the feet-head axis; the lattice stays."""
    axis = int(np.argmax(np.abs(volume.ijk_to_ras[2, :3])))
    sigma = 0.35 * mm / volume.spacing[axis]
    return ndimage.gaussian_filter1d(array, sigma, axis=axis)


def low_dose(volume: Volume, rng: np.random.Generator) -> np.ndarray:
    """A tenth of the dose and less, thick slices: noise of 70 HU and slices of 8 mm."""
    return _slices(volume, volume.array.astype(np.float32), 8.0) + _noise(volume, 70.0, rng)


def cone_beam(volume: Volume, rng: np.random.Generator) -> np.ndarray:
    """A cone beam's grey values: contrast down to 0.6, 60 HU too low, shading of 60 HU, noise of 45 HU."""
    hu = volume.array.astype(np.float32)
    body = np.where(hu > -900, 0.6 * hu - 60 + 60 * _shading(volume, 90.0, rng), hu)
    return body + _noise(volume, 45.0, rng) * (hu > -950)


def strong_contrast(volume: Volume, rng: np.random.Generator) -> np.ndarray:
    """A low X-ray energy: what is above water is 2.5 times as far above it."""
    hu = volume.array.astype(np.float32)
    return np.where(hu > 15, 15 + 2.5 * (hu - 15), hu) + _noise(volume, 25.0, rng)


#: CT value -> grey value: fat bright, fluid dark, organs between, blood with contrast bright, cortical bone dark.
_T1 = ((-1024, -1000), (-500, -850), (-170, -100), (-120, 230), (-70, 200), (-25, -60), (0, -120), (15, -110), (40, 0),
       (60, 45), (100, 95), (150, 140), (250, 190), (400, 20), (700, -140), (3071, -170))


def mr_like(volume: Volume, rng: np.random.Generator) -> np.ndarray:
    """MR-like (T1): a lookup table of CT values, then a coil's shading of 12 % and noise of 20."""
    table = np.array(_T1, np.float32)
    grey = np.interp(volume.array.astype(np.float32), table[:, 0], table[:, 1]).astype(np.float32)
    signal = (grey + 200) * (1 + 0.12 * _shading(volume, 150.0, rng)) - 200
    return np.where(grey > -400, signal, grey) + _noise(volume, 20.0, rng) * (grey > -900)


def inverted(volume: Volume, rng: np.random.Generator) -> np.ndarray:
    """Soft tissue mirrored about 50 HU between -150 and 250: dark is bright; air, lung and dense bone stay."""
    hu = volume.array.astype(np.float32)
    table = np.array(((-1024, -1024), (-300, -300), (-150, 250), (250, -150), (400, 100), (600, 600), (3071, 3071)))
    return np.interp(hu, table[:, 0], table[:, 1]).astype(np.float32) + _noise(volume, 15.0, rng)


LOOKS: dict[str, Callable[[Volume, np.random.Generator], np.ndarray]] = {
    "low-dose": low_dose, "cone-beam": cone_beam, "strong-contrast": strong_contrast, "mr-like": mr_like,
    "inverted": inverted,
}


def look_sentence(look: str) -> str:
    """What an acquisition is, in words."""
    return "as it is" if look == AS_IS else (LOOKS[look].__doc__ or "").splitlines()[0]


def with_look(volume: Volume, look: str) -> Volume:
    """The volume (HU, int16) as that acquisition shows it; the same name gives the same noise.

    Raises OptionError for an acquisition that is not in `LOOKS`.
    """
    if look == AS_IS:
        return volume
    if look not in LOOKS:
        raise OptionError(f"There is no acquisition {look!r}; choose {AS_IS}, {', '.join(LOOKS)}.")
    rng = np.random.default_rng(zlib.crc32(f"{volume.name} {look}".encode()))
    array = np.clip(np.rint(LOOKS[look](volume, rng)), -1024, 3071).astype(np.int16)
    return volume.with_array(array)
