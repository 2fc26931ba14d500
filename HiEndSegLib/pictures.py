"""Small pictures for a panel, drawn with numpy alone: PNG files as bytes, within tens of milliseconds.

`figures.py` draws what is published, with matplotlib; that is not there in Slicer. Colors are (r, g, b), 0 to 255;
images (rows, columns, 3) uint8, row 0 at the top.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BACKGROUND, TEXT, QUIET, MARK = (16, 18, 20), (230, 230, 230), (128, 134, 140), (255, 64, 64)
#: Five columns by seven rows a letter, a row a number whose bits are the pixels. Small letters are drawn as large ones.
_ROWS = {
    "0": "0E11131519110E", "1": "040C040404040E", "2": "0E11010204081F", "3": "1F02040201110E", "4": "02060A121F0202",
    "5": "1F101E0101110E", "6": "0608101E11110E", "7": "1F010204080808", "8": "0E11110E11110E", "9": "0E11110F01020C",
    "A": "0E11111F111111", "B": "1E11111E11111E", "C": "0E11101010110E", "D": "1C12111111121C", "E": "1F10101E10101F",
    "F": "1F10101E101010", "G": "0E11101711110F", "H": "1111111F111111", "I": "0E04040404040E", "J": "0702020202120C",
    "K": "11121418141211", "L": "1010101010101F", "M": "111B1515111111", "N": "11111915131111", "O": "0E11111111110E",
    "P": "1E11111E101010", "Q": "0E11111115120D", "R": "1E11111E141211", "S": "0F10100E01011E", "T": "1F040404040404",
    "U": "1111111111110E", "V": "11111111110A04", "W": "11111115151B11", "X": "11110A040A1111", "Y": "11110A04040404",
    "Z": "1F01020408101F", ".": "00000000000C0C", ",": "00000000060204", "%": "18190204081303", "-": "0000001F000000",
    "+": "0004041F040400", "/": "00010204081000", ":": "000C0C000C0C00", "(": "02040808080402", ")": "08040202020408",
    "=": "00001F001F0000", "?": "0E110102040004"}
_WIDE, _HIGH = 5, 7


@dataclass(frozen=True)
class Tile:
    """One picture of a grid: a heat map over a slice. heat: (rows, columns) as the slice, in the map's own unit."""

    title: str
    heat: np.ndarray


@dataclass(frozen=True)
class Dot:
    """One place in a scatter plot; a marked one is framed."""

    title: str
    x: float
    y: float
    color: tuple[int, int, int]
    marked: bool = False


def small_multiples(gray: np.ndarray, tiles: Sequence[Tile], color: Callable[[np.ndarray], np.ndarray], *, top: float,
                    floor: float, opacity: float = 0.6, mark: tuple[float, float] | None = None, columns: int = 3,
                    width: int = 400) -> bytes:
    """PNG of one slice with a different map over it in each tile, in reading order.

    gray: (rows, columns) 0 to 1, square pixels. color: shares 0 to 1 of any shape -> (..., 3), 0 to 255. top, floor:
    the value of the last color, and the one below which nothing is drawn. mark: (row, column) of the query.
    """
    columns = max(1, min(columns, len(tiles)))
    gap, head = 4, _HIGH + 6
    wide = (width - gap * (columns + 1)) // columns
    scale = wide / gray.shape[1]
    high = max(1, round(gray.shape[0] * scale))
    rows = -(-len(tiles) // columns)
    sheet = np.empty((gap + rows * (high + head + gap), width, 3), np.uint8)
    sheet[:] = BACKGROUND
    base = _resized(np.clip(gray, 0, 1), high, wide)[..., None] * 255.0
    for number, tile in enumerate(tiles):
        y, x = gap + (number // columns) * (high + head + gap), gap + (number % columns) * (wide + gap)
        write(sheet, tile.title, y + 2, x + 1, TEXT)
        heat = _resized(np.asarray(tile.heat, np.float32), high, wide)
        strength = np.where(heat >= max(floor, 1e-12), opacity, 0.0)[..., None]
        mixed = base * (1 - strength) + color(np.clip(heat / max(top, 1e-12), 0, 1)) * strength
        part = sheet[y + head:y + head + high, x:x + wide]
        part[:] = np.rint(mixed).astype(np.uint8)
        if mark is not None:
            _box(part, round(mark[0] * scale), round(mark[1] * scale), max(2, wide // 36))
    return png(sheet)


def bars(values: Sequence[float], titles: Sequence[str], *, limit: float | None = None, marked: Sequence[bool] = (),
         width: int = 400, height: int = 170) -> bytes:
    """PNG of a bar chart; the value over each bar, its title below, marked bars brighter.

    limit: value of the dashed line and of the chart's top (none: the largest value).
    """
    sheet = np.empty((height, width, 3), np.uint8)
    sheet[:] = BACKGROUND
    top = max([limit or 0.0, *values, 1e-9])
    base, space = height - _HIGH - 8, height - 2 * (_HIGH + 8)
    step = (width - 8) / max(1, len(values))
    if limit:
        y = base - round(space * limit / top)
        sheet[y, ::4] = QUIET
        write(sheet, f"{limit:g}", y + 2, width - 6 * len(f"{limit:g}") - 2, QUIET)
    for number, (value, title) in enumerate(zip(values, titles)):
        left = round(4 + number * step + step * 0.18)
        right = max(left + 1, round(4 + (number + 1) * step - step * 0.18))
        high = round(space * max(0.0, value) / top)
        bright = number < len(marked) and marked[number]
        sheet[base - high:base, left:right] = (246, 139, 20) if bright else (150, 84, 120)
        middle = (left + right) / 2
        for text, y, ink in ((f"{value:.0f}" if value >= 9.95 else f"{value:.1f}", base - high - _HIGH - 3, TEXT),
                             (title, base + 4, TEXT if bright else QUIET)):
            write(sheet, text, max(0, y), round(middle - (6 * len(text) - 1) / 2), ink)
    sheet[base:base + 1] = QUIET
    return png(sheet)


def scatter(panels: Sequence[tuple[str, Sequence[Dot]]], *, width: int = 400) -> bytes:
    """PNG of scatter plots side by side, one (title, dots) each, scaled to their own dots; axes have no unit."""
    gap, head, edge = 4, _HIGH + 6, 12
    wide = (width - gap * (len(panels) + 1)) // max(1, len(panels))
    sheet = np.empty((head + wide + 2 * gap, width, 3), np.uint8)
    sheet[:] = BACKGROUND
    for number, (title, dots) in enumerate(panels):
        x0, y0 = gap + number * (wide + gap), gap + head
        write(sheet, title, gap, x0 + 1, TEXT)
        sheet[y0:y0 + wide, x0:x0 + wide] = (28, 31, 34)
        if not dots:
            continue
        places = np.array([[dot.x, dot.y] for dot in dots], float)
        size = np.maximum(places.max(0) - places.min(0), 1e-9)
        shares = (places - places.min(0)) / size
        for dot, (right, up) in sorted(zip(dots, shares), key=lambda pair: pair[0].marked):
            x = x0 + edge + round(float(right) * (wide - 3 * edge))
            y = y0 + wide - edge - round(float(up) * (wide - 2 * edge))
            sheet[y - 3:y + 4, x - 3:x + 4] = dot.color
            if dot.marked:
                _box(sheet, y, x, 6)
            write(sheet, dot.title, y - 3, x + 9 if dot.marked else x + 6, TEXT if dot.marked else QUIET)
    return png(sheet)


def color_bar(color: Callable[[np.ndarray], np.ndarray], *, top: float, floor: float, width: int = 400) -> bytes:
    """PNG of a map's colors from 0 to `top` with five values below; what is not drawn (below `floor`) is dark.

    color: as in `small_multiples`.
    """
    sheet = np.empty((14 + _HIGH + 6, width, 3), np.uint8)
    sheet[:] = BACKGROUND
    margin, digits = 14, 0 if top >= 20 else 1 if top >= 2 else 2
    shares = np.linspace(0, 1, width - 2 * margin)
    inks = np.rint(color(shares)).astype(np.uint8)
    inks[shares * top < floor] = (40, 43, 46)
    sheet[2:14, margin:width - margin] = inks
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, words = margin + round(share * (len(shares) - 1)), f"{share * top:.{digits}f}"
        sheet[14:16, x] = TEXT
        write(sheet, words, 18, min(max(0, x - 3 * len(words)), width - 6 * len(words)), TEXT)
    return png(sheet)


def write(sheet: np.ndarray, text: str, row: int, column: int, color) -> None:
    """Letters onto an image, their upper left corner at (row, column); what does not fit is cut off."""
    for letter in text.upper():
        bits = _ROWS.get(letter)
        if bits is not None:
            glyph = np.array([[int(bits[2 * y:2 * y + 2], 16) >> (_WIDE - 1 - x) & 1 for x in range(_WIDE)]
                              for y in range(_HIGH)], bool)
            y, x = max(0, row), max(0, column)
            part = sheet[y:row + _HIGH, x:max(x, column + _WIDE)]
            part[glyph[y - row:y - row + part.shape[0], x - column:x - column + part.shape[1]]] = color
        column += _WIDE + 1


def png(image: np.ndarray) -> bytes:
    """An (rows, columns, 3) uint8 image as a PNG file."""
    rows, columns, _channels = image.shape
    lines = np.zeros((rows, 1 + 3 * columns), np.uint8)      # each line begins with its filter, none
    lines[:, 1:] = image.reshape(rows, -1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)),
                                              (b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _resized(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Linear between pixel centers."""
    for axis, size in ((0, rows), (1, columns)):
        have = array.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if n == axis else 1 for n in range(array.ndim)])
        array = np.take(array, low, axis) * (1 - share) + np.take(array, np.minimum(low + 1, have - 1), axis) * share
    return array


def _box(part: np.ndarray, row: int, column: int, size: int) -> None:
    """An open square around a pixel."""
    rows, columns = part.shape[:2]
    y0, y1, x0, x1 = (max(0, row - size), min(rows - 1, row + size), max(0, column - size),
                      min(columns - 1, column + size))
    if y0 <= y1 and x0 <= x1:
        part[[y0, y1], x0:x1 + 1] = MARK
        part[y0:y1 + 1, [x0, x1]] = MARK
