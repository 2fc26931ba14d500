"""The worker process: takes jobs one at a time, keeps the model warm, and ends when its client does.

Threads: the main thread is the one that ever touches a model (cuDNN's plans are per thread); a reader sees cancels and
the end of file while it computes; a heart beats. Started by `start_worker.py`, by hand with `python -m …worker`.

`--test-operations FILE` replaces the library by `make_library()` of that Python file. It is for tests, which need
operations that hang or die on command; nothing but this argument can bring in other code.
"""

from __future__ import annotations

import os

os.environ.pop("ITK_AUTOLOAD_PATH", None)      # first of all: Slicer's value can crash SimpleITK's import

import argparse
import faulthandler
import gc
import logging
import platform
import queue
import re
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Callable

from .. import __version__
from ..errors import Cancelled, HiEndSegError
from ..tasks import CancelToken
from . import protocol
from .failures import as_failure, is_fatal
from .folder import remove_tree
from .redact import redact

HEARTBEAT_SECONDS = 0.5
PROGRESS_SECONDS = 0.05
#: After the end of file a running job has this long to stop by itself.
LEAVE_SECONDS = 1.0

def take_over_streams() -> tuple[int, int]:
    """Private copies of stdin and stdout for the protocol; whoever reads or prints gets nothing, or stderr."""
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (incoming, outgoing):
            msvcrt.setmode(descriptor, os.O_BINARY)
    return incoming, outgoing


class Worker:
    """Serves one client over two file descriptors."""

    def __init__(self, incoming: int, outgoing: int, make_library: Callable[[], Any]):
        self._incoming, self._outgoing = incoming, outgoing
        self._make_library = make_library
        self._library: Any = None
        self._sending = threading.Lock()
        self._jobs: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._tokens: dict[int, CancelToken] = {}
        self._folders: set[Path] = set()
        self._job: dict | None = None
        self._secrets: tuple[str, ...] = ()
        self._free = threading.Event()
        self._free.set()
        self._leaving = False

    def run(self) -> None:
        """Serve until the end of file on stdin. Does not return: the process ends here."""
        self.send({"type": protocol.HELLO, "protocol": protocol.PROTOCOL_VERSION, "library": __version__,
                   "pid": os.getpid(), "python": platform.python_version()})
        for target in (self._read, self._beat):
            threading.Thread(target=target, daemon=True, name=target.__name__).start()
        _send_logs_to(self)
        while True:
            message = self._jobs.get()
            if message is None or self._leaving:
                break
            self._job = message
            self._free.clear()
            try:
                answer = self._answer(message)
            finally:
                self._tokens.pop(message["job"], None)
                self._job, self._secrets = None, ()
            self.send(answer)
            self._free.set()
            if answer.get("fatal"):
                break
        self._free.set()
        if self._leaving:
            threading.Event().wait(LEAVE_SECONDS)        # the reader is about to end the process
        os._exit(0)                                      # no time for the farewells of GPU libraries

    def send(self, message: dict) -> None:
        """Send a message; a result too long for the protocol becomes a failure. A client that is gone is no error."""
        try:
            line = protocol.encode_line(message)
        except protocol.ProtocolError as error:
            if message["type"] != protocol.FINISHED:
                return
            line = protocol.encode_line({"type": protocol.FAILED, "job": message["job"], "code": error.code,
                                         "sentence": error.sentence, "fatal": False})
        self._send_line(line)

    def _send_line(self, line: bytes) -> None:
        view = memoryview(line)
        with self._sending:
            try:
                while view:
                    view = view[os.write(self._outgoing, view):]
            except OSError:
                pass                                     # the reader sees the end of file too, and ends us

    # the reader's thread
    def _read(self) -> None:
        splitter = protocol.LineSplitter()
        while True:
            try:
                data = os.read(self._incoming, 65536)
            except OSError:
                data = b""
            if not data:
                self._leave()
            for line in splitter.feed(data):
                try:
                    if line is None:
                        raise protocol.ProtocolError(f"A line longer than {protocol.MAX_LINE} bytes was refused.")
                    self._take(protocol.decode_line(line))
                except protocol.ProtocolError as error:
                    self.log(error.sentence)

    def _take(self, message: dict) -> None:
        number = message.get("job")
        if message["type"] == protocol.JOB and number is not None:
            self._folders = {folder for folder in self._folders if folder.exists()}
            self._folders.add(Path(str(message.get("folder"))))
            self._tokens[number] = CancelToken()         # here, so that a cancel can never come before it
            self._jobs.put(message)
        elif message["type"] in (protocol.CANCEL, protocol.FINISH):
            token = self._tokens.get(number)
            if token is not None:
                token.cancel() if message["type"] == protocol.CANCEL else token.finish()
        else:
            raise protocol.ProtocolError("A message of an unknown type was ignored.")

    def _leave(self) -> None:
        """The client is gone: stop, remove the jobs' folders, end the process."""
        self._leaving = True
        for token in list(self._tokens.values()):
            token.cancel()
        self._jobs.put(None)
        self._free.wait(LEAVE_SECONDS)
        for folder in self._folders:
            remove_tree(folder)
        os._exit(0)

    # the heart's thread
    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            job = self._job
            self.send({"type": protocol.HEARTBEAT, "job": None if job is None else job["job"]})

    # the model's thread
    def _answer(self, message: dict) -> dict:
        """Do the job; the last message about it."""
        number = message["job"]
        token = self._tokens[number]
        began, lasting = time.monotonic(), False
        try:
            result, lasting = self._work(message, token)
            answer = {"type": protocol.FINISHED, "job": number, "result": result}
        except Cancelled:
            answer = {"type": protocol.CANCELLED, "job": number}
        except HiEndSegError as error:
            answer = _failed(number, error.code, error.sentence)
        except BaseException as error:                   # noqa: BLE001 - a job may not take the worker along
            for line in traceback.format_exc().splitlines():
                self.log(line)
            failure = as_failure(error)
            answer = _failed(number, failure.code, failure.sentence, fatal=is_fatal(error))
            if isinstance(error, MemoryError):
                self._library = None                     # and with it the warm model
            del failure                                  # it holds the frames, and they the volume
        if answer["type"] != protocol.FINISHED or _has_files(message):      # it takes longer than a quick look
            gc.collect()                                 # lets go of mapped files, which Windows could not remove
        if token.cancelled and not lasting:
            answer = {"type": protocol.CANCELLED, "job": number}
        self.log(f"Job {number}: {answer['type']} after {time.monotonic() - began:.2f} s.")
        return answer

    def _work(self, message: dict, token: CancelToken) -> tuple[Any, bool]:
        """The encoded result, and whether it lasts: something on the disk that a cancel came too late for."""
        from . import transfer

        number, operation, folder = message["job"], message.get("operation"), Path(str(message.get("folder")))
        token.check()
        if self._library is None:
            self._library = self._make_library()
        if operation not in self._library.OPERATIONS:
            raise protocol.ProtocolError(f"The worker knows no operation '{operation}'; restart the program, so that "
                                         "both sides are of the same version.")
        arguments = transfer.decode(message.get("arguments"), folder, mapped=True)
        self._secrets = tuple(value.name for value in arguments.values() if getattr(value, "name", None))
        self.log(f"Job {number}: {operation}.")
        report = self._reporter(number)
        if operation in getattr(self._library, "RECORDING", ()):
            arguments["record"] = self._recorder(number)
        result = getattr(self._library, operation)(**arguments, progress=report, cancel=token)
        del arguments
        lasting = bool(getattr(result, "lasting", False))
        if not lasting:
            token.check()
        report(1.0, "Handing over the result")
        encoded, arrays = transfer.encode(result, "result")
        transfer.write_arrays(arrays, folder, token.check)
        return encoded, lasting

    def _recorder(self, number: int) -> Callable[[dict], None]:
        from .transfer import plain

        def record(values: dict) -> None:
            try:
                line = protocol.encode_line({"type": protocol.RECORD, "job": number, "values": plain(values)})
            except protocol.ProtocolError as error:
                self.log(f"warning: a record was not sent. {error.sentence}")
            else:
                self._send_line(line)

        return record

    def _reporter(self, number: int) -> Callable[[float, str], None]:
        last = [0.0, ""]

        def report(fraction: float, message: str) -> None:
            now, stage = time.monotonic(), re.sub(r"[\d.,:]+", "", str(message))
            if now - last[0] < PROGRESS_SECONDS and stage == last[1] and fraction < 1.0:
                return                                   # never drop a new stage: it may last
            last[:] = [now, stage]
            fraction = float(fraction)
            self.send({"type": protocol.PROGRESS, "job": number,
                       "fraction": fraction if 0.0 <= fraction <= 1.0 else 0.0, "message": str(message)})

        return report

    def log(self, text: str) -> None:
        """Send a log line, without paths and without the volume's name."""
        job = self._job
        self.send({"type": protocol.LOG, "job": None if job is None else job["job"],
                   "message": redact(text, self._secrets)})


def _failed(number: int, code: str, sentence: str, fatal: bool = False) -> dict:
    return {"type": protocol.FAILED, "job": number, "code": code, "sentence": sentence, "fatal": fatal}


def _has_files(message: dict) -> bool:
    from .transfer import has_files

    return has_files(message.get("arguments"))


def _send_logs_to(worker: Worker) -> None:
    """Python's logging and warnings become log messages."""
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                worker.log(f"{record.levelname.lower()}: {record.getMessage()}")
            except Exception:                            # noqa: BLE001 - a log line is not worth a job
                pass

    logging.captureWarnings(True)
    logging.getLogger().addHandler(Handler())            # others' warnings …
    logging.getLogger("HiEndSegLib").setLevel(logging.INFO)      # … and our milestones


def _library_maker(test_file: str | None) -> Callable[[], Any]:
    if test_file is None:
        def make() -> Any:
            from .library import Library

            return Library()

        return make

    def make_test() -> Any:
        import runpy

        return runpy.run_path(test_file)["make_library"]()

    return make_test


def _no_core_files() -> None:
    """A core file would hold the patient's image."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    except (ImportError, ValueError, OSError):
        pass


def main(argv: list[str] | None = None) -> int:
    """Entry point of the worker process."""
    parser = argparse.ArgumentParser(prog="hiendseg-worker", description="HiEndSeg's worker process; started by its "
                                     "client, of no use by hand.")
    parser.add_argument("--test-operations", metavar="FILE", help="for tests: a Python file whose make_library() "
                        "replaces the operations")
    options = parser.parse_args(argv)
    incoming, outgoing = take_over_streams()
    faulthandler.enable()
    _no_core_files()
    Worker(incoming, outgoing, _library_maker(options.test_operations)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
