"""The lattices of clinical life and a small legend, for the geometry tests."""

from __future__ import annotations

import numpy as np

from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.volume import Volume


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation matrix from three angles in degrees."""
    a, b, c = np.radians([x, y, z])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rx @ ry @ rz


def affine(directions, spacing, origin=(0, 0, 0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(directions) * np.asarray(spacing)
    matrix[:3, 3] = origin
    return matrix


#: The lattices of clinical life; every reader, writer and resampler is tried on each.
LATTICES = {
    "axis-aligned RAS": ((9, 8, 7), affine(np.eye(3), (1.5, 1.5, 1.5), (-10, 20, 30.25))),
    "LPS": ((9, 8, 7), affine(np.diag([-1, -1, 1]), (0.7, 0.8, 5), (100, 120.5, -900))),
    "PIR": ((9, 8, 7), affine(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]), (1.1, 1.2, 1.3), (3, 4, 5))),
    "oblique": ((9, 8, 7), affine(rotation(12, -7, 21), (0.9, 1.1, 3), (1 / 3, -77.7, 1e3 / 7))),
    "left-handed oblique": ((9, 8, 7), affine(rotation(-8, 15, 4) @ np.diag([-1, 1, 1]), (2, 1, 1.7), (5, 6, 7))),
    "anisotropic": ((12, 11, 3), affine(np.diag([-1, -1, 1]), (0.4, 0.4, 8), (0, 0, 0))),
    "one slice": ((9, 8, 1), affine(np.diag([-1, -1, 1]), (0.7, 0.7, 5), (1, 2, 3))),
    "one voxel": ((1, 1, 1), affine(np.eye(3), (2, 3, 4), (1, 2, 3))),
}


def make(name: str, dtype=np.int16) -> Volume:
    shape, matrix = LATTICES[name]
    rng = np.random.default_rng(3)
    high = 200 if np.dtype(dtype) == np.uint8 else 1500
    array = rng.integers(0 if np.dtype(dtype).kind == "u" else -1024, high, shape).astype(dtype)
    return Volume(array, matrix, name=name)


FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]
ANATOMY = ["SCT", "123037004", "Anatomical Structure"]
LEGEND = [
    Label(1, "liver", "Liver", (221, 130, 101), {"category": ANATOMY, "type": ["SCT", "10200004", "Liver"],
                                                 "modifier": None}, True),
    Label(2, "kidney_left", "Left kidney (Niere links, почка)", (185, 102, 83), {
        "category": ANATOMY, "type": ["SCT", "64033007", "Kidney"], "modifier": ["SCT", "7771000", "Left"]}),
    Label(5, "absent", "Never there", (0, 255, 7)),
]


def labels_like(lattice: str) -> Volume:
    volume = make(lattice, np.uint8)
    return volume.with_array(np.choose(volume.array % 3, [0, 1, 2]).astype(np.uint8))
