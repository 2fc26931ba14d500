"""The tests' acts on the volumes of a folder, with screenshots: `python Testing/desktop/show.py DATA OUT [NAME …]`.

DATA: a folder with volumes (.nii, .nii.gz, .nrrd, .mha), also one level down; NAME: only those whose path holds it.
Every volume is segmented; the other acts are played on the first. OUT gets the pictures and report.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import double                                                                    # noqa: E402

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha")


def volumes(data, names):
    """Volume files of a folder and of its folders, label maps left out by name."""
    found = [path for pattern in ("*", "*/*") for path in sorted(data.glob(pattern))
             if path.name.endswith(ENDINGS) and "label" not in path.name and "seg" not in path.name]
    return [path for path in found if not names or any(name in str(path.relative_to(data)) for name in names)]


def title(path, data):
    parts = path.relative_to(data).parts
    return parts[0] if len(parts) > 1 else path.name.split(".")[0]


def play(desk, name, act):
    """One act; its row for the report, and what went wrong in it."""
    from double import dialogs
    from desk import hidden_failures

    began, words = time.monotonic(), ""
    desk.begin()
    try:
        words = act() or desk.state.headline
        ok = True
    except Exception:                                # noqa: BLE001 - told in the report; the next act is played
        ok, words = False, traceback.format_exc()
    swallowed = hidden_failures()
    dialogs.reset()
    desk.end()
    row = {"act": name, "ok": ok and not swallowed, "seconds": round(time.monotonic() - began, 1),
           "longest turn (s)": round(desk.longest, 2), "words": "\n".join([words, *swallowed]).strip()}
    print(f"{'ok  ' if row['ok'] else 'FAIL'} {name:40} {row['seconds']:7.1f} s  {row['words'][-300:]}", flush=True)
    return row


def acts_on(desk, path, name, everything, folder, steps):
    """(name, function) pairs for one volume."""
    import acts

    def load():
        from HiEndSegLib.bridge.volumes import node_from_volume
        from HiEndSegLib.geometry.reading import read_volume

        volume = read_volume(path)
        return node_from_volume(volume, desk.scene, name=name)

    def segment():
        volume = load()
        node, _array = acts.segment(desk, volume, f"{name}-segment")
        headline = desk.state.headline
        acts.show_and_edit(desk, volume, node, f"{name}-edit")
        return headline

    def transformed(make, kind, answer=None):
        volume = load()
        acts.under_transform(desk, volume, make(volume), f"{name}-{kind}", answer)

    def stored(kind, **how):
        other = acts.like(desk, load(), **how)
        desk.choose(other)
        node = desk.run()
        acts.check_result(desk, other, node)
        desk.picture(f"{name}-{kind}", other, node)

    yield f"{name} segment", segment
    if everything:
        yield f"{name} attention", lambda: f"{acts.attend(desk, load(), f'{name}-attention'):.2f} s a drag"
        yield f"{name} adapt", lambda: acts.adapt(desk, load(), f"{name}-adapt", steps=steps).headline
        yield f"{name} cancel", lambda: f"{acts.cancel(desk, load(), f'{name}-cancel'):.2f} s"
        yield f"{name} worker killed", lambda: acts.worker_killed(desk, load(), f"{name}-killed")
        yield f"{name} scene closed", lambda: acts.scene_closed(desk, load(), f"{name}-scene-closed")
        yield f"{name} volume deleted", lambda: acts.volume_deleted(desk, load(), f"{name}-volume-deleted")
        yield f"{name} linear transform", lambda: transformed(lambda _v: acts.linear_transform(desk), "linear")
        yield f"{name} grid transform", lambda: transformed(lambda v: acts.grid_transform(desk, v), "grid", "as_is")
        yield f"{name} left-handed", lambda: stored("left-handed", flip=True)
        yield f"{name} oblique", lambda: stored("oblique", turn=acts.rotation(8))
        yield f"{name} broken checksum", lambda: acts.broken_checksum(desk, load(), folder, f"{name}-broken-checksum")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--steps", type=int, help="of the act that adapts; as many as the panel takes if not given")
    parser.add_argument("--act", default="", help="only acts whose name holds this")
    options = parser.parse_args(arguments)
    paths = volumes(options.data, options.names)
    if not paths:
        parser.error(f"no volume was found in {options.data}")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        models = folder / "models"
        models.mkdir()
        os.environ["HIENDSEG_MODELS"] = str(models)         # of the panel and of the engine's process
        double.start(folder / "slicer")
        from desk import Desk

        desk, rows = Desk(options.out), []
        desk.patience = 3600.0
        desk.enter()
        for number, path in enumerate(paths):
            for name, act in acts_on(desk, path, title(path, options.data), number == 0, models,
                                     options.steps):
                if options.act in name:
                    rows.append(play(desk, name, act))
        desk.module.unload()
    with open(options.out / "report.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
