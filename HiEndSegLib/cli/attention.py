"""`hiendseg attention`: what a model looks at from a point, as volumes on the image's lattice and as a figure."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..errors import OptionError, OutputError
from ..models.registry import Registry
from .console import ProgressLine, say
from .interrupt import Interrupt
from .segment import check_device, make_engine

#: One key is enough: a command looks at one volume.
KEY = "volume"


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """Look, write the maps and the figure, and say what they show. Raises HiEndSegError."""
    if options.volume is None:                  # "--heads VOLUME": the volume was taken for the heads
        options.volume, options.heads = options.heads, "all"
        if options.volume in ("mean", "all") or options.volume.isdigit():
            raise OptionError("Say which volume to look into: hiendseg attention VOLUME --at R,A,S -o OUT.")
    card = Registry().verify(options.model, interrupt.token)
    check_device(options.device)
    at, layers, heads = point_of(options.at), layers_of(options.layers), heads_of(options.heads)
    check_query(options, at)
    check_targets([options.output], options.overwrite)
    check_figure(options)
    from ..geometry.reading import read_volume
    from ..geometry.writing import write_volume
    from .adapt_labels import read_taught

    line = ProgressLine(1)
    line.begin(Path(options.volume).name)
    line(0.0, "Reading")
    series = int(options.series) if options.series and options.series.isdigit() else options.series
    volume = interrupt.wait_for(read_volume, options.volume, series=series)
    mask = None
    if options.labels is not None:
        taught = interrupt.wait_for(read_taught, options.labels, card.labels)
        mask = mask_of(taught.labels, taught.legend, options.structure)
    with make_engine(options) as engine:
        result = engine.attend(
            volume, volume_key=KEY, at=at, mask=mask, query=options.query,
            structure=None if mask is not None else options.structure, layers=layers, heads=heads, kind=options.kind,
            model=str(card.folder), device=options.device, progress=line, cancel=interrupt.token)
    interrupt.token.check()
    line(1.0, "Writing")
    targets = names_of(result, Path(options.output))
    check_targets([str(path) for path in targets], options.overwrite)        # somebody may have been there meanwhile
    for one, path in zip(result.maps, targets):
        write_volume(result.as_volume(one, volume, options.unit), path)
    if options.figure:
        from ..figures_attention import attention_figure
        from ..geometry.modality import guess_modality

        is_hu = guess_modality(volume).is_hu
        attention_figure(volume, result, options.figure, plane=options.plane or "axial", title=card.title,
                         window=(400, 40) if is_hu else None)
    line.end()
    for sentence in dict.fromkeys([*volume.notes, *result.sentences]):
        say(sentence)
    for one, path in zip(result.maps, targets):
        if one.head is None or heads != "all":
            say(f"{path}: {one.sentence}" + (" Nearly even, so it says little." if one.is_even else ""))
    if heads == "all" and result.heads:
        from ..geometry.reading import extension

        say(f"The maps of the {result.heads} single heads lie beside each, as …-head00{extension(targets[0])} and so "
            "on.")
    if options.figure:
        say(f"{options.figure}: figure")
    return 0


def names_of(result, output: Path) -> list[Path]:
    """A file a map: the name given for a single one; otherwise with block and head before the extension."""
    if len(result.maps) == 1:
        return [output]
    from ..geometry.reading import extension

    ending = extension(output)
    start = str(output)[:-len(ending)]
    return [Path(f"{start}-{'layer' if result.kind == 'head' else 'block'}{one.layer:02d}"
                 f"{'' if one.head is None else f'-head{one.head:02d}'}{ending}") for one in result.maps]


def point_of(text: str | None) -> tuple[float, float, float] | None:
    """--at R,A,S in mm, or with letters as sentences print it ("R 12, P 40, S 3 mm"); else OptionError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.strip().removesuffix("mm").split(",")]
    numbers = []
    for part, (plus, minus) in zip(parts, ("RL", "AP", "SI")):
        sign = {plus: 1.0, minus: -1.0}.get(part[:1].upper())
        try:
            numbers.append(float(part) if sign is None else sign * float(part[1:]))
        except ValueError:
            break
    if len(parts) != 3 or len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise OptionError(f"The point '{text}' is not three numbers; write --at R,A,S in mm, where R, A, S grow to the "
                          "patient's right, front and head.")
    return tuple(numbers)


def layers_of(text: str | None) -> list[int] | None:
    """--layers 2,5,8,11; None where nothing was asked for. OptionError."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"The layers '{text}' are not whole numbers; write for example --layers 2,5,8,11.") from None


def heads_of(text: str) -> str | int:
    """--heads mean, all or a number. OptionError."""
    if text in ("mean", "all"):
        return text
    if not text.isdigit():
        raise OptionError(f"There is no head '{text}'; write --heads mean, --heads all or a number from 0.")
    return int(text)


def check_query(options: argparse.Namespace, at: tuple | None) -> None:
    """Refuse what cannot be asked together."""
    if options.labels is not None and options.structure is None:
        raise OptionError("With --labels also say which structure of it is the query: --structure ID.")
    if options.labels is not None and options.query is not None:
        raise OptionError("Choose one query: --query N, or --labels with --structure.")
    if options.query is not None and options.structure is not None:
        raise OptionError("Choose one object query: --query N, or --structure ID.")
    if options.labels is None and (options.structure or options.query is not None) and options.kind != "head":
        raise OptionError("--structure without --labels, and --query, choose an object query of the head; add --kind "
                          "head, or draw the structure and give --labels FILE.")
    if at is None and options.labels is None and options.structure is None and options.query is None:
        raise OptionError("Say where to look from: --at R,A,S in mm, or --labels FILE with --structure ID.")


def check_targets(paths: list[str], overwrite: bool) -> None:
    """Refuse to replace files, and names that cannot be written, before anything is computed."""
    from ..geometry.reading import extension
    from ..geometry.writing import WRITABLE

    wanted = tuple(ending for ending in WRITABLE if ending != ".seg.nrrd")
    for path in map(Path, paths):
        if extension(path) not in wanted:
            raise OutputError(f"A map is a volume, and {path.name} has no extension of one; use one of "
                              f"{', '.join(wanted)}.")
        check_free(path, overwrite)


def check_figure(options: argparse.Namespace) -> None:
    """The same for the figure."""
    if options.figure is None:
        if options.plane is not None:
            raise OptionError("--plane is the plane of the figure; add --figure FILE.png.")
        return
    path = Path(options.figure)
    if path.suffix.lower() != ".png":
        raise OutputError(f"The figure is a PNG picture, and {path.name} has another extension; call it .png.")
    check_free(path, options.overwrite)


def check_free(path: Path, overwrite: bool) -> None:
    """OutputError where a file is there already, or no folder for it."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there already; give --overwrite to replace it, or another name.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist; create it or choose another one.")


def mask_of(labels, legend, structure: str):
    """The voxels of one structure: by id, name or value. Raises OptionError."""
    import numpy as np

    for label in legend:
        if structure in (label.id, label.name, str(label.value)):
            return labels.with_array((labels.array == label.value).astype(np.uint8))
    if structure.isdigit() and (labels.array == int(structure)).any():
        return labels.with_array((labels.array == int(structure)).astype(np.uint8))
    names = ", ".join(label.id for label in legend) or "values without names"
    raise OptionError(f"The label map has no structure '{structure}'; it holds {names}.")
