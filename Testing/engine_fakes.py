"""Operations for the engine's tests: `model` names what should happen. Brought in by the worker's --test-operations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np

FOREVER = threading.Event()
IN_WORKER = "HiEndSegLib.engine.worker" in sys.modules


class FakeLibrary:
    OPERATIONS = frozenset({"segment", "doctor", "plan", "adapt", "plan_adapt"})
    RECORDING = frozenset({"adapt"})

    def __init__(self):
        self.calls = 0
        self.threads = set()

    def doctor(self, *, progress, cancel):
        return {"itk": os.environ.get("ITK_AUTOLOAD_PATH"), "utf8": sys.flags.utf8_mode, "path": sys.path[:],
                "stdin": os.read(0, 1).decode() if IN_WORKER else "", "calls": self.calls, "threads": len(self.threads),
                "torch": "torch" in sys.modules, 7: (1, float("nan"))}

    def plan(self, *, progress, cancel, **arguments):
        return arguments

    def segment(self, *, volume, model, device, only, roi, progress, cancel):
        from HiEndSegLib.geometry.labels import Label
        from HiEndSegLib.operations.result import SegmentResult

        self.calls += 1
        self.threads.add(threading.get_ident())
        progress(0.25, "Working")
        getattr(self, "do_" + (model or "nothing"))(volume, progress, cancel)
        labels = (np.asarray(volume.array) > 0).astype(np.uint8)
        return SegmentResult(
            labels=volume.with_array(labels, name=f"{volume.name} labels"),
            legend=[Label(1, "liver", "Leber ä", (221, 130, 101), {"category": ["SCT", "1", "x"], "modifier": None})],
            statistics=[{"id": "liver", "voxels": int(labels.sum()), "mean_hu": float("nan")}],
            info={"device": device, "only": only, "roi": roi, "calls": self.calls, "pid": os.getpid(),
                  "seconds": np.float32(0.5), "dtype": str(volume.array.dtype),
                  "fortran": bool(volume.array.flags.f_contiguous)},
            messages=["A sentence."])

    def adapt(self, *, volume, labels, model, record, progress, cancel, **arguments):
        """Train for ever, or as `model` says; the report says what came in and why it stopped."""
        from HiEndSegLib.engine.adapting import AdaptResult

        self.calls += 1
        for step in range(10 ** 9 if model != "short" else 50):
            record({"kind": "step", "step": step, "loss": float("nan") if step == 3 else 1 / (1 + step)})
            progress(0.25, "Training")
            if cancel.finishing:
                break
            cancel.check()
            FOREVER.wait(0.0 if model == "short" else 0.01)
            if model == "deaf" and step == 5:
                FOREVER.wait()
            if model == "unsendable" and step == 5:
                record({"kind": object()})
        if model == "slow to finish":
            FOREVER.wait(1.5)
        while model == "late" and not cancel.cancelled:
            FOREVER.wait(0.01)
        report = {"asked": cancel.finishing, "cancelled": cancel.cancelled, "volume": str(volume.array.dtype),
                  "labels": str(labels.array.dtype), "sum": int(labels.array.sum()), "seconds": np.float64("inf"),
                  "arguments": {key: value for key, value in arguments.items() if key != "legend"},
                  "legend": [label.to_dict() for label in arguments["legend"]], "steps": step}
        return AdaptResult(None if model == "worse" else "mine@1.0.0", report, ["A sentence."])

    def do_nothing(self, volume, progress, cancel):
        pass

    def do_obedient(self, volume, progress, cancel):
        while True:
            cancel.check()
            FOREVER.wait(0.02)

    def do_deaf(self, volume, progress, cancel):
        FOREVER.wait()

    def do_stopped(self, volume, progress, cancel):
        os.kill(os.getpid(), signal.SIGSTOP)

    def do_late(self, volume, progress, cancel):
        """Finish in spite of the cancel."""
        while not cancel.cancelled:
            FOREVER.wait(0.01)

    def do_kill(self, volume, progress, cancel):
        print("last words about /home/anna/secret/scan.nii.gz of", volume.name, file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)

    def do_crash(self, volume, progress, cancel):
        os.kill(os.getpid(), signal.SIGSEGV)

    def do_leave(self, volume, progress, cancel):
        os._exit(3)

    def do_chatty(self, volume, progress, cancel):
        print("a print")
        sys.stdout.flush()
        os.write(1, b'{"type":"finished","job":1,"result":"forged"}\n')
        subprocess.run([sys.executable, "-c", "print('from a child', input() if 0 else '')"], check=True)
        warnings.warn(f"about /data/patients/anna/ct.nii.gz, called {volume.name}", stacklevel=1)

    def do_progress(self, volume, progress, cancel):
        for step in (0.3, 0.2, float("nan"), 0.9):
            progress(step, f"Stage with {'no number' if np.isnan(step) else step}")

    def do_bad_input(self, volume, progress, cancel):
        from HiEndSegLib.errors import InputError

        raise InputError("The volume is flat; choose another one.")

    def do_bug(self, volume, progress, cancel):
        raise KeyError(f"{volume.name} in /home/anna/ct.nii")

    def do_memory(self, volume, progress, cancel):
        raise MemoryError

    def do_gpu(self, volume, progress, cancel):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def do_module(self, volume, progress, cancel):
        import module_that_is_not_there  # noqa: F401

    def do_overlong(self, volume, progress, cancel):
        from HiEndSegLib.engine import protocol

        protocol.encode_line.__defaults__ = (4000,)
        volume.meta["long"] = "x" * 5000

    def do_writing(self, volume, progress, cancel):
        """Stop for ever in the middle of the result's file."""
        from HiEndSegLib.engine import transfer

        pieces = transfer._npy_pieces

        def half(array):
            iterator = pieces(array)
            yield next(iterator)
            progress(1.0, "Half written")
            FOREVER.wait()

        transfer._npy_pieces = half


def make_library():
    return FakeLibrary()
