"""The wire protocol's lines and what log lines may not say."""

from __future__ import annotations

import json
import random

import pytest

from HiEndSegLib.engine import protocol
from HiEndSegLib.engine.redact import redact
from HiEndSegLib.errors import EngineError


def test_a_message_is_one_ascii_line_and_comes_back():
    message = {"type": "log", "job": 3, "message": "Größe\n日本 \u2028 \udcff"}
    line = protocol.encode_line(message)
    assert line.isascii() and line.count(b"\n") == 1 and line.endswith(b"\n")
    assert protocol.decode_line(line.rstrip()) == message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_json_cannot_hold_is_not_sent(value):
    with pytest.raises(protocol.ProtocolError, match="cannot be sent"):
        protocol.encode_line({"type": "log", "message": value})


def test_a_line_over_the_limit_is_not_sent():
    with pytest.raises(protocol.ProtocolError, match="longer than the 100 bytes"):
        protocol.encode_line({"type": "log", "message": "x" * 100}, limit=100)
    assert issubclass(protocol.ProtocolError, EngineError) and protocol.ProtocolError.code == "engine"


@pytest.mark.parametrize("line", [b"hello", b"[1]", b"{}", b'{"type":3}', b'{"type":"log","job":"7"}', b"\xff\xfe",
                                  b'{"type":"log","job":true}', b'{"type":"log"', b"[" * 100_000])
def test_garbage_is_refused(line):
    with pytest.raises(protocol.ProtocolError, match="ignored"):
        protocol.decode_line(line)


def test_lines_are_put_together_from_any_pieces():
    lines = [json.dumps({"n": n, "text": "ä" * n}, ensure_ascii=False).encode() for n in range(50)]
    stream = b"\r\n".join(lines[:25]) + b"\n\n" + b"\n".join(lines[25:]) + b"\n"
    generator = random.Random(3)
    for _ in range(50):
        splitter, got, at = protocol.LineSplitter(), [], 0
        while at < len(stream):
            step = generator.randint(1, 60)
            got += splitter.feed(stream[at:at + step])
            at += step
        assert got == lines


def test_a_half_line_waits():
    splitter = protocol.LineSplitter()
    assert splitter.feed(b'{"a":') == [] and splitter.feed(b"1}") == [] and splitter.feed(b"\n") == [b'{"a":1}']


def test_an_overlong_line_is_refused_once_and_the_next_one_is_read():
    splitter = protocol.LineSplitter(limit=10)
    got = []
    for piece in (b"short\n" + b"x" * 8, b"x" * 8, b"x" * 1000, b"y\nnext\n"):
        got += splitter.feed(piece)
    assert got == [b"short", None, b"next"]
    assert splitter.feed(b"x" * 11 + b"\nok\n") == [None, b"ok"]


@pytest.mark.parametrize("text, expected", [
    ("cannot open /home/anna/ct.nii.gz now", "cannot open <path> now"),
    ("'/data/Anna Maria/ct.nii' is bad", "<path> is bad"),
    (r"C:\Users\Anna\ct.nrrd failed", "<path> failed"),
    (r"share \\server\patients\anna gone", "share <path> gone"),
    ('  File "/usr/lib/python3/torch/nn.py", line 3', "  File <path>/nn.py, line 3"),
    ("/opt/lib/x.py:12: UserWarning: odd", "<path>/x.py:12: UserWarning: odd"),
    ("3/4 tiles, 1.5 mm/voxel, and/or", "3/4 tiles, 1.5 mm/voxel, and/or"),
    ("Anna^Maria: volume Anna^Maria_2", "<name>: volume Anna^Maria_2"),
])
def test_log_lines_lose_paths_and_names(text, expected):
    assert redact(text, ["Anna^Maria", ""]) == expected
