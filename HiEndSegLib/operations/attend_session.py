"""What stays at hand while somebody looks around in a volume: its image at the model's spacing, and its windows.

A window is a tile of the model lattice. Where it lies depends on the point alone (`window_start`), so the same point
always gives the same map, whatever was looked at before, and two models of one spacing see the same voxels; a point
that is dragged stays in its window for a quarter of the window's width and gets the next one then.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, OptionError, OutOfMemoryError
from ..geometry.body import AIR_HU
from ..geometry.modality import guess_modality
from ..geometry.points import point_words
from ..geometry.resample import resample_like, resample_to_spacing
from ..geometry.volume import Volume, check_volume
from ..models.loading import Model
from ..networks.head_trace import HeadTrace, find_head, trace_head
from ..networks.looking import EncoderView, TokenStates, find_encoder
from ..tasks import CancelToken
from .devices import choose_device, is_out_of_memory
from .roi import extent_sentence
from .tiling import Index, cut_tile

#: Windows whose features are kept.
WINDOWS = 3
#: Edge of a cell of maps that come from no tokens, voxels (or less, so that it divides the tile).
CELL = 8


@dataclass(frozen=True, eq=False)
class Lattice:
    """Where a volume lies and how large it is, without its voxels: all that is needed once the image is resampled."""

    shape: tuple[int, int, int]
    ijk_to_ras: np.ndarray


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A volume at a model's spacing. image: float32, closest RAS+ axes. is_hu: voxels are Hounsfield units.
    notes: sentences on what was changed or assumed."""

    image: Volume
    lattice: Lattice
    is_hu: bool
    modality: str
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return self.image.array.nbytes


def prepare_image(volume: Volume, spacing: Sequence[float]) -> PreparedImage:
    """The volume as every look at it with models of this spacing needs it; holds no reference to the input.

    Raises InputError for a volume that no operation can use.
    """
    known = len(volume.notes)
    checked = check_volume(volume)
    guess = guess_modality(checked)
    image = resample_to_spacing(checked, spacing)
    image = Volume(np.array(image.array, dtype=np.float32), image.ijk_to_ras, volume.name)
    notes = list(checked.notes[known:])
    if not (guess.kind == "CT" and guess.is_hu):
        notes.append(guess.sentence)
    return PreparedImage(image, Lattice(volume.shape, volume.ijk_to_ras), guess.is_hu, guess.kind, tuple(notes))


class Window:
    """One window: its voxels, and the features that were needed so far."""

    def __init__(self, session: AttendSession, start: Index):
        self.session, self.start = session, start
        card = session.model.card
        tile = cut_tile(session.prepared.image.array, start, card.tile, card.windows, card.curve)
        self.voxels = torch.from_numpy(tile)[None]
        self.ijk_to_ras = shifted(session.prepared.image.ijk_to_ras, start)
        self._states: TokenStates | None = None
        self._trace: HeadTrace | None = None

    def cells_to_ras(self, edge: Sequence[int]) -> np.ndarray:
        """Matrix of a grid of cells of `edge` voxels; the first is centred (edge - 1) / 2 voxels in."""
        return coarser(self.ijk_to_ras, edge)

    def index(self, point: Sequence[float]) -> np.ndarray:
        """Voxel coordinates (float) of a point in the window."""
        return (np.linalg.inv(self.ijk_to_ras) @ [*point, 1.0])[:3]

    def voxel_of(self, point: Sequence[float]) -> tuple[int, int, int]:
        """The voxel of the window that a point lies in; the nearest one for a point at the volume's very edge."""
        return tuple(int(np.clip(np.floor(v + 0.5), 0, n - 1)) for v, n in zip(self.index(point), self.shape))

    def cell_of(self, point: Sequence[float], edge: Sequence[int]) -> tuple[int, int, int]:
        """The cell of `edge` voxels that a point lies in."""
        return tuple(min(v // e, n // e - 1) for v, e, n in zip(self.voxel_of(point), edge, self.shape))

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.voxels.shape[2:])

    def states(self) -> TokenStates:
        """The encoder's states of this window; its blocks run when they are first asked for."""
        if self._states is None:
            self._states = TokenStates(self.session.encoder, self.on_device(), self.session.check)
        return self._states

    def trace(self) -> HeadTrace:
        """The head's run over this window; the whole network, once."""
        if self._trace is None:
            self.session.check()
            self._trace = trace_head(self.session.model.network, self.on_device())
        return self._trace

    @property
    def warm(self) -> bool:
        return self._states is not None or self._trace is not None

    def on_device(self) -> Tensor:
        return self.voxels.to(self.session.device)


class AttendSession:
    """One model and one volume, looked at from many points. Not for several threads at a time.

    volume: or what `prepare_image` made of it for the model's spacing. device: where to compute, the model is moved
    there; None: where the model is.
    `encoder` and `head` are None where the network has none.
    Raises InputError, DeviceError.
    """

    def __init__(self, model: Model, volume: Volume | PreparedImage, *, device: str | None = None):
        if isinstance(volume, PreparedImage):
            if not np.allclose(volume.image.spacing, model.card.spacing, rtol=1e-6):
                raise ValueError(f"this image was prepared for {volume.image.spacing} mm, and model {model.card.key} "
                                 f"works at {model.card.spacing}")
            self.prepared = volume
        else:
            self.prepared = prepare_image(volume, model.card.spacing)
        self.model = model
        if device is not None:
            model.network.to(choose_device(device).kind)
        self.encoder: EncoderView | None = find_encoder(model.network)
        self.head = find_head(model.network)
        self._windows: OrderedDict[Index, Window] = OrderedDict()
        self._cancel = CancelToken()

    @property
    def device(self) -> torch.device:
        parameter = next(self.model.network.parameters(), None)
        return self.model.device if parameter is None else parameter.device

    @property
    def cell(self) -> tuple[int, int, int]:
        """Voxels of a token; of a cell where there are no tokens."""
        if self.encoder is not None:
            return self.encoder.patch_size
        return tuple(next(edge for edge in range(min(CELL, n), 0, -1) if n % edge == 0) for n in self.model.card.tile)

    def check(self) -> None:
        self._cancel.check()

    @contextmanager
    def working(self, cancel: CancelToken | None) -> Iterator[None]:
        """Everything that runs the network happens in here: no gradients, the caller's token, memory in words."""
        self._cancel = cancel or CancelToken()
        try:
            self.check()
            with torch.no_grad():
                yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.forget_windows()
            raise OutOfMemoryError(f"There is not enough memory on {self.device} to look into model "
                                   f"{self.model.card.key}; close other programs or choose the device cpu.") from error

    def window(self, point: Sequence[float]) -> Window:
        """The window around a point in RAS mm. Raises OptionError outside the volume."""
        start = window_start(self.model_index(point), self.prepared.image.shape, self.model.card.tile, self.cell)
        if start in self._windows:
            self._windows.move_to_end(start)
        else:
            while len(self._windows) >= WINDOWS:
                self._windows.popitem(last=False)
            self._windows[start] = Window(self, start)
        return self._windows[start]

    def forget_windows(self) -> None:
        """Let go of all features; the image stays."""
        self._windows.clear()

    def model_index(self, point: Sequence[float]) -> np.ndarray:
        """A point as (float) indices of the image at the model's spacing. Raises OptionError outside the volume."""
        point = check_point(point)
        lattice = self.prepared.lattice
        index = (np.linalg.inv(lattice.ijk_to_ras) @ [*point, 1.0])[:3]
        if (index < -0.5 - 1e-4).any() or (index > np.asarray(lattice.shape) - 0.5 + 1e-4).any():
            frame = Volume(np.broadcast_to(np.uint8(0), lattice.shape), lattice.ijk_to_ras)
            raise OptionError(f"The point {point_words(point)} lies outside the volume, which covers "
                              f"{extent_sentence(frame)} mm; choose a point inside it.")
        inside = (self.prepared.image.ras_to_ijk @ [*point, 1.0])[:3]
        return np.clip(inside, -0.5, np.asarray(self.prepared.image.shape) - 0.5)

    @property
    def middle(self) -> tuple[float, float, float]:
        """The middle of the volume in RAS mm."""
        lattice = self.prepared.lattice
        return tuple(float(v) for v in (lattice.ijk_to_ras @ [*((n - 1) / 2 for n in lattice.shape), 1.0])[:3])

    def mask_image(self, mask: Volume) -> np.ndarray:
        """A mask (any lattice, not 0 is in it) on the model lattice, (I, J, K) float32, how much of each voxel.

        Raises InputError for a mask that is not 3D or empty, or does not touch the volume.
        """
        binary = mask.with_array((np.asarray(mask.array) != 0).astype(np.float32))
        if not binary.array.any():
            raise InputError("The structure has no voxels; choose one that is there.")
        lattice = self.prepared.lattice
        if binary.same_lattice(Volume(np.broadcast_to(np.uint8(0), lattice.shape), lattice.ijk_to_ras), 1e-3):
            array = resample_to_spacing(binary, self.prepared.image.spacing).array
        else:
            if min(self.prepared.image.spacing) > max(binary.spacing):      # or structures fall between the samples
                binary = resample_to_spacing(binary, self.prepared.image.spacing, fill=0.0)
            array = resample_like(binary, self.prepared.image, order=1).array
        if not float(array.max()) > 0:
            raise InputError("The structure lies outside the volume; choose one that was drawn on it.")
        return array

    def sentences_at(self, window: Window, point: Sequence[float]) -> list[str]:
        """What a person should know about a point: the modality, air, blackness, a small volume."""
        card, said = self.model.card, []
        if self.prepared.notes:
            said += list(self.prepared.notes)
        image = self.prepared.image
        shape = np.asarray(image.shape)
        index = np.clip(np.round(self.model_index(point)).astype(int), 0, shape - 1)
        value = float(image.array[tuple(index)])
        if self.prepared.is_hu and value < AIR_HU:
            said.append(f"The point lies in air ({value:.0f} HU); what is seen from there says little about the "
                        "patient.")
        elif self.encoder is not None:
            low, high = card.windows[0]
            token = window.voxels[0, 0][tuple(slice(c * e, (c + 1) * e) for c, e in
                                              zip(window.cell_of(point, self.cell), self.cell))]
            if float(token.max()) <= 0.0:
                said.append(f"Everything in this token is darker than {low:g}, which the encoder sees as black; it "
                            "can tell the token by its place and its neighbors only.")
        return said + self.sentences_on_size()

    def sentences_on_size(self) -> list[str]:
        """What a person should know about a volume that is smaller than a token."""
        shape = self.prepared.image.shape
        if all(n >= edge for n, edge in zip(shape, self.cell)):
            return []
        return [f"The volume ({self._mm(shape)}) is smaller than one token of this model ({self._mm(self.cell)}); it "
                "was surrounded with air, and a map of it shows little."]

    def sentences_on_end(self) -> list[str]:
        """Why a map ends within a larger volume."""
        tile = self.model.card.tile
        if all(n <= edge for n, edge in zip(self.prepared.image.shape, tile)):
            return []
        return [f"The model sees {self._mm(tile)} at a time; the map ends there."]

    def _mm(self, counts: Sequence[int]) -> str:
        return " x ".join(f"{n * s:.0f}" for n, s in zip(counts, self.prepared.image.spacing)) + " mm"


def window_start(index: Sequence[float], shape: Sequence[int], tile: Sequence[int], cell: Sequence[int]) -> Index:
    """First voxel of the window around a point of the model lattice.

    Starts are multiples of about a quarter of the tile (whole cells), so that neighbouring points share a window and
    the cells of two windows fall onto each other; at the ends of the volume the window stays inside it. Along an axis
    shorter than the tile it hangs over evenly, as in `tiling.tile_starts`.
    """
    starts = []
    for position, size, edge, step in zip(index, shape, tile, cell):
        if size <= edge:
            starts.append(-((edge - size) // 2))
            continue
        step = step * max(1, round(edge / 4 / step))
        wanted = round((position - (edge - 1) / 2) / step) * step
        starts.append(int(min(max(wanted, 0), size - edge)))
    return tuple(starts)


def shifted(matrix: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """The matrix of a lattice that begins at voxel `start`."""
    result = np.array(matrix)
    result[:3, 3] = (matrix @ [*start, 1.0])[:3]
    return result


def coarser(matrix: np.ndarray, edge: Sequence[int]) -> np.ndarray:
    """The matrix of cells of `edge` voxels over a lattice: the first is centred (edge - 1) / 2 voxels in."""
    result = np.array(matrix)
    result[:3, :3] = matrix[:3, :3] * np.asarray(edge)
    result[:3, 3] = (matrix @ [*((e - 1) / 2 for e in edge), 1.0])[:3]
    return result


def check_point(point: Sequence[float]) -> tuple[float, float, float]:
    """(R, A, S) as floats. Raises OptionError."""
    try:
        numbers = tuple(float(v) for v in point)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise OptionError(f"A point is three numbers in mm, right, anterior and superior; {point!r} is something else.")
    return numbers
