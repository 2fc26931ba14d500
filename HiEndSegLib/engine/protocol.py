"""The wire protocol between client and worker: one JSON object a line, ASCII only, on stdin and stdout.

Worker → client
    {"type": "hello", "protocol": 2, "library": "0.1.0", "pid": 4711, "python": "3.12.10"}   first line, once
    {"type": "heartbeat", "job": 7 or null}                                                  about twice a second
    {"type": "progress", "job": 7, "fraction": 0.25, "message": "Tile 3 of 12"}
    {"type": "record", "job": 7, "values": {"kind": …}}       what an operation tells while it runs; plain JSON
    {"type": "log", "job": 7 or null, "message": "…"}                                        no paths, no names
    {"type": "finished", "job": 7, "result": encoded}         encoded: see transfer.py; arrays lie in the job's folder
    {"type": "failed", "job": 7, "code": "bad-input", "sentence": "…", "fatal": false}      fatal: the worker ends now
    {"type": "cancelled", "job": 7}                                                          the work has stopped

Client → worker
    {"type": "job", "job": 7, "operation": "segment", "folder": "/private/folder", "arguments": encoded}
    {"type": "finish", "job": 7}                       stop early and keep the best so far; ends as "finished"
    {"type": "cancel", "job": 7}                       stop, keep nothing; also after a "finish"
    end of file                                        stop at once, whatever runs, and remove the running job's folder

Job numbers only rise; a message about a job that is over is dropped by both sides.
"""

from __future__ import annotations

import json

from ..errors import EngineError

#: Raised by one whenever a message changes its meaning.
PROTOCOL_VERSION = 2
#: Longest line either side sends or accepts, in bytes. Voxels never go through the pipe.
MAX_LINE = 8 * 1024 * 1024

HELLO, HEARTBEAT, PROGRESS, RECORD, LOG = "hello", "heartbeat", "progress", "record", "log"
FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"
JOB, FINISH, CANCEL = "job", "finish", "cancel"


class ProtocolError(EngineError):
    """A line that is not a message, or a message that must not be sent."""


def encode_line(message: dict, limit: int = MAX_LINE) -> bytes:
    """The message as one line of ASCII with its line end.

    Raises ProtocolError for what JSON cannot hold (NaN included) and for a line longer than `limit` bytes.
    """
    try:
        line = json.dumps(message, allow_nan=False, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"This message cannot be sent to the other process ({error}).") from error
    if len(line) > limit:
        raise ProtocolError(f"A message of {len(line)} bytes is longer than the {limit} bytes that may be sent; "
                            "pass large data as arrays.")
    return line


def decode_line(line: bytes) -> dict:
    """The message in one line. Raises ProtocolError for anything that is not a JSON object with a "type"."""
    try:
        message = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ProtocolError("A line that is not JSON was ignored.") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("A line without a message type was ignored.")
    job = message.get("job")
    if job is not None and (isinstance(job, bool) or not isinstance(job, int)):
        raise ProtocolError("A message whose job number is not a whole number was ignored.")
    return message


class LineSplitter:
    """Puts lines together from whatever pieces a pipe delivers: half lines, several lines, CR LF.

    A line longer than `limit` bytes is given up as None, once, and its bytes are not kept.
    """

    def __init__(self, limit: int = MAX_LINE):
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Lines completed by `data`, without line ends and without empty ones; None stands for a refused line."""
        lines: list[bytes | None] = []
        pieces = data.split(b"\n")
        for index, piece in enumerate(pieces):
            if index:
                line = b"".join(self._parts).rstrip(b"\r")
                if line and not self._skipping:
                    lines.append(line)
                self._parts, self._size, self._skipping = [], 0, False
            self._size += len(piece)
            if self._size > self._limit:
                if not self._skipping:
                    lines.append(None)
                self._parts, self._skipping = [], True
            elif piece:
                self._parts.append(piece)
        return lines
