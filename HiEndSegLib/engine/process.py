"""Starting the worker's interpreter, talking to it through pipes without ever blocking, and ending its process tree.

The rules come from how 3D Slicer runs Python: inside Slicer the interpreter is `PythonSlicer`, a launcher whose child
does the work; a window must not pop up on Windows; the pipe must carry UTF-8 whatever the system's code page is.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, Callable, Mapping

from ..errors import EngineError
from . import protocol

#: The script that the interpreter is given.
START_SCRIPT = Path(__file__).resolve().parent / "start_worker.py"
STDERR_LINES = 200
STDERR_LINE_LENGTH = 2000


def inside_slicer(modules: Mapping[str, Any] | None = None) -> bool:
    """Whether this is the Slicer application (the `slicer-core` wheel has a `slicer` module too, but no `app`)."""
    module = (sys.modules if modules is None else modules).get("slicer")
    return getattr(module, "app", None) is not None


def choose_interpreter(in_slicer: bool, executable: str | None,
                       which: Callable[[str], str | None] = shutil.which) -> str:
    """The Python that runs the worker: PythonSlicer inside Slicer, else this interpreter.

    Inside Slicer `executable` is Slicer itself, so it is never a fallback: it would open a second Slicer.
    """
    if in_slicer:
        found = which("PythonSlicer")
        if not found:
            raise EngineError("PythonSlicer was not found, the Python that belongs to this Slicer; repair the Slicer "
                              "installation, or start Slicer by its launcher.")
        return found
    if not executable:
        raise EngineError("This program does not say which Python it runs on; name one with the option interpreter.")
    return executable


def worker_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The worker's environment: `base`, UTF-8, unbuffered, and CPU fallback for what Apple's MPS lacks."""
    return {**base, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PYTORCH_ENABLE_MPS_FALLBACK": "1"}


def popen_options(platform: str, module: Any = subprocess) -> dict[str, Any]:
    """What Popen needs for a process tree of its own that Ctrl-C in our terminal does not reach, without a window."""
    if platform != "win32":
        return {"start_new_session": True}
    startup = module.STARTUPINFO()
    startup.dwFlags |= module.STARTF_USESHOWWINDOW
    startup.wShowWindow = module.SW_HIDE
    return {"startupinfo": startup, "creationflags": module.CREATE_NO_WINDOW | module.CREATE_NEW_PROCESS_GROUP}


def describe_exit(code: int | None, stderr: str = "") -> str:
    """How the worker ended, in a few words: "killed by signal 9, often out of memory"."""
    if code == 1 and "exit abnormally" in stderr:
        return "its Python crashed or was killed, often out of memory"     # what Slicer's launcher makes of a signal
    if code == 1 and "No module named" in stderr:
        name = stderr.rsplit("No module named", 1)[1].strip().split("\n")[0].strip("'\" ")
        return f"its Python has no module {name}; install what HiEndSeg needs"
    if code is None:
        return "it closed its output"
    if os.name == "posix" and 128 < code <= 128 + 64:
        code = 128 - code                      # a launcher or shell passes its child's signal on like this
    if -64 <= code < 0:
        number = -code
        reason = {9: "often out of memory", 7: "often a full disk or out of memory", 15: "something asked it to end"
                  }.get(number, "a crash inside a library or driver" if number in (4, 6, 8, 11) else "")
        return f"killed by signal {number}" + (f", {reason}" if reason else "")
    unsigned = code & 0xFFFFFFFF
    if unsigned >= 0xC0000000:                 # Windows NTSTATUS
        reason = {0xC0000005: "a crash inside a library or driver", 0xC0000017: "out of memory",
                  0xC000012D: "out of memory"}.get(unsigned, "a crash")
        return f"exit code 0x{unsigned:08X}, {reason}"
    return f"exit code {code}"


class WorkerProcess:
    """A started worker. Reader threads fill `arrived`, a writer thread sends what `send` was given; nothing blocks.

    `arrived` holds ("message", dict) and ("noise", text) in the order of stdout, then ("end", None).
    `ring` is called, from threads, whenever something arrived. Raises EngineError if the interpreter cannot start.
    """

    def __init__(self, command: list[str], environment: dict[str, str], ring: Callable[[], None]):
        self.arrived: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._ring = ring
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=subprocess.PIPE, bufsize=0, env=environment,
                                             **popen_options(sys.platform))
        except OSError as error:
            raise EngineError(f"The worker's Python could not be started ({error.strerror}); check that it is "
                              "installed and may be run.") from error
        self.pid = self._process.pid
        self._threads = [threading.Thread(target=target, daemon=True, name=f"hiendseg-{target.__name__}")
                         for target in (self._read_output, self._read_errors, self._write_input)]
        for thread in self._threads:
            thread.start()

    @property
    def returncode(self) -> int | None:
        """None while the process lives."""
        return self._process.poll()

    def stderr_tail(self) -> list[str]:
        """The last lines the worker wrote to stderr, as they came."""
        return list(self._stderr)

    def send(self, message: dict) -> None:
        """Queue a message. Raises ProtocolError if it cannot be sent at all; a dead worker is noticed elsewhere."""
        self._outgoing.put(protocol.encode_line(message))

    def close_input(self) -> None:
        """End of file for the worker, after what is queued: it stops by itself."""
        self._outgoing.put(None)

    def wait_gone(self, timeout: float) -> bool:
        """Wait until the process and everybody who holds its stdout are gone."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        self._threads[0].join(timeout)
        return not self._threads[0].is_alive()

    def kill(self) -> None:
        """End the whole process tree at once. Safe on a process that is gone."""
        self._outgoing.put(None)
        if self.returncode is None or self._threads[0].is_alive():     # else its number may be somebody else's now
            kill_tree(self._process)

    def _read_output(self) -> None:
        splitter = protocol.LineSplitter()
        for data in _pieces(self._process.stdout):
            for line in splitter.feed(data):
                if line is None:
                    item = ("noise", f"A line longer than {protocol.MAX_LINE} bytes was refused.")
                else:
                    try:
                        item = ("message", protocol.decode_line(line))
                    except protocol.ProtocolError as error:
                        item = ("noise", error.sentence)
                self.arrived.put(item)
            self._ring()
        self.arrived.put(("end", None))
        self._ring()

    def _read_errors(self) -> None:
        splitter = protocol.LineSplitter()
        for data in _pieces(self._process.stderr):
            for line in splitter.feed(data):
                if line is not None:
                    self._stderr.append(line.decode("utf-8", errors="replace")[:STDERR_LINE_LENGTH])

    def _write_input(self) -> None:
        pipe = self._process.stdin
        try:
            while (line := self._outgoing.get()) is not None:
                view = memoryview(line)
                while view:
                    view = view[pipe.write(view):]
        except OSError:
            pass                              # the worker is gone; its stdout says so
        finally:
            try:
                pipe.close()
            except OSError:
                pass


def _pieces(pipe: Any):
    """What arrives on a raw pipe, piece by piece, until its end; closes it."""
    with pipe:
        while True:
            try:
                data = pipe.read(65536)
            except (OSError, ValueError):
                return
            if not data:
                return
            yield data


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process started with `popen_options` and all its descendants, launcher or not."""
    for child in _descendants(process.pid) if process.poll() is None else ():
        try:
            child.kill()
        except Exception:                     # noqa: BLE001 - psutil's errors; gone already, or not ours
            pass
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)     # its own session, so its pid is its group's
        except OSError:
            pass
    elif process.poll() is None:
        try:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=5,
                           **popen_options(sys.platform))
        except (OSError, subprocess.SubprocessError):
            pass
    try:
        process.kill()
    except OSError:
        pass


def _descendants(pid: int) -> list:
    """Children and theirs, where psutil is installed; it also sees those that left the process group."""
    try:
        import psutil
    except ImportError:
        return []
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
