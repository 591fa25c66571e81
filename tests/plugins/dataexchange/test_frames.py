"""Frames made and taken apart: what is refused, what is tolerated, what comes back as it went."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.coreapi import InvalidValueError
from pilot.plugins.dataexchange import filestream, frames
from pilot.plugins.dataexchange.filestream import Init, Kind
from pilot.plugins.dataexchange.frames import FrameType, Tags
from pilot.plugins.dataexchange.naming import numbered_names, plain_name, reduced_name, stamped_name


def tagged(header: bytes, inner_type: int = 1, payload: bytes = b"x") -> bytes:
    return len(header).to_bytes(2, "big") + header + inner_type.to_bytes(4, "big") + payload


def test_limit_of_a_frame() -> None:
    assert frames.header_untrusted(b"\0\0\0\1\4\0\0\0") == (1, 64 << 20)
    with pytest.raises(InvalidValueError, match="longer than"):
        frames.header_untrusted(b"\0\0\0\1\4\0\0\1")


@given(st.binary(max_size=300), st.from_regex(r"[A-Za-z0-9\-_.:]{0,128}", fullmatch=True))
def test_tagged_comes_back(payload: bytes, message_id: str) -> None:
    tags = Tags(message_id, "r:1")
    made = frames.split_tagged_untrusted(frames.encode_tagged(tags, FrameType.JSON, payload))
    assert (made.tags, made.inner_type, bytes(made.payload)) == (tags, FrameType.JSON, payload)


@pytest.mark.parametrize("header", [b"null", b"{}", b'{"message_id":null}', b'{"message_id":""}', b'{"other":[1]}'])
def test_tags_that_say_nothing(header: bytes) -> None:
    """All of these the official receiver takes."""
    assert frames.split_tagged_untrusted(tagged(header)).tags == Tags()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        tagged(b""),
        tagged(b"{" + b" " * 1023 + b"}"),
        tagged(b"[]"),
        tagged(b"{"),
        tagged(b"{} x"),
        tagged(b'{"message_id":5}'),
        tagged(b'{"message_id":"a b"}'),
        tagged(b'{"message_id":"' + b"a" * 129 + b'"}'),
        tagged('{"message_id":"ä"}'.encode()),
        tagged(b"[" * 1000),
        tagged(b"\xff"),
        tagged(b"{}", 10),
        tagged(b"{}")[:-3],
    ],
)
def test_unusable_tags(payload: bytes) -> None:
    with pytest.raises(InvalidValueError):
        frames.split_tagged_untrusted(payload)


@pytest.mark.parametrize("name", ["a/b", "a\\b", ".", "..", "/", "x" * 256])
def test_names_a_file_frame_may_not_have(name: str) -> None:
    with pytest.raises(InvalidValueError):
        frames.encode_file(name, b"")
    encoded = name.encode()
    with pytest.raises(InvalidValueError):
        frames.split_file_untrusted(len(encoded).to_bytes(2, "big") + encoded)


def test_files_without_a_name() -> None:
    for payload, content in ((b"", b""), (b"\0", b"\0"), (b"\0\0abc", b"abc"), (b"\0\5abcd", b"\0\5abcd")):
        name, got = frames.split_file_untrusted(payload)
        assert (name, bytes(got)) == ("", content)
    with pytest.raises(InvalidValueError):
        frames.split_file_untrusted(b"\0\2\xff\xfe")
    with pytest.raises(InvalidValueError):
        frames.encode_file("", b"")


def test_answers() -> None:
    answer = frames.parse_answer_untrusted(1, b"ACK TEXT 5 bytes (duplicate)")
    assert (bool(answer), answer.duplicate) == (True, True)
    answer = frames.parse_answer_untrusted(1, b"ERR TEXT save failed: \x1b[31m")
    assert (bool(answer), answer.text) == (False, "ERR TEXT save failed: ?[31m")
    for number, payload in ((2, b"ACK"), (1, b""), (1, b"OK"), (1, b"\xff")):
        with pytest.raises(InvalidValueError):
            frames.parse_answer_untrusted(number, payload)


def test_file_stream_parts() -> None:
    transfer, init = b"i" * 16, Init(2**40, b"h" * 32, 49152, "ä/b")
    part = filestream.split_untrusted(filestream.encode_init(transfer, init)[8:])
    assert (part.kind, part.transfer_id, filestream.split_init_untrusted(part.body)) == (Kind.INIT, transfer, init)
    part = filestream.split_untrusted(filestream.chunk_header(transfer, 7, 3)[8:] + b"abc")
    chunk = filestream.split_chunk_untrusted(part.body)
    assert (part.kind, chunk.offset, bytes(chunk.data)) == (Kind.CHUNK, 7, b"abc")
    for data in (b"", b"x" * 16):
        with pytest.raises(InvalidValueError, match="malformed stream frame"):
            filestream.split_untrusted(data)
    for body in (b"", b"x" * 45, b"\0" * 44 + b"\0\5abcd"):
        with pytest.raises(InvalidValueError, match="malformed INIT"):
            filestream.split_init_untrusted(memoryview(body))
    with pytest.raises(InvalidValueError, match="malformed CHUNK"):
        filestream.split_chunk_untrusted(memoryview(b"1234567"))
    with pytest.raises(InvalidValueError):
        filestream.encode_init(transfer, init._replace(name="x" * 65536))


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a.tar.gz", "a.tar-S.gz"),
        ("a", "a-S"),
        (".env", "-S.env"),
        ("..", "_.-S."),
        (".a.b", "_.a-S.b"),
        ("a\nb\x1b", "a_b_-S"),
        ("x." + "y" * 40, "x." + "y" * 40 + "-S"),
        ("\u202egpj.exe", "_gpj-S.exe"),
        ("a\\b", "a_b-S"),
    ],
)
def test_stamped_names(name: str, stored: str) -> None:
    assert stamped_name(name, "S") == stored


def test_names_fit_and_end_nowhere_else() -> None:
    for name in ("ä" * 127 + ".txt", "x" * 255, "." * 300, "x." + "e" * 300):
        for made in (stamped_name(name, "20261122-093447.452-000001"), next(numbered_names(name))):
            assert 0 < len(made.encode()) <= 255
            assert plain_name(made) == made
    numbers = numbered_names("a.b")
    assert [next(numbers) for _ in range(3)] == ["a.b", "a (2).b", "a (3).b"]


def test_reduced_names() -> None:
    for name, reduced in (("a/b/c.txt", "c.txt"), ("/", "received.bin"), ("", "received.bin"), ("a/.", "received.bin")):
        assert reduced_name(name) == reduced
    assert reduced_name("../..") == ".."
    assert plain_name("..") == "_.."
