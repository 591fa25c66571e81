"""Every captured exchange on port 1001, replayed on the service; the captured inbox files, made anew."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import Addr
from pilot.plugins.dataexchange.frames import FrameType, Tags, encode_frame, type_name
from pilot.plugins.dataexchange.model import Message
from pilot.plugins.dataexchange.store import message_json
from tests.plugins.dataexchange.helpers import frame, running

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())
EXCHANGES = VECTORS["dataexchange_port_1001"]["exchanges"]
FILES = {name: value for name, value in VECTORS["inbox_files"].items() if name != "status"}


@pytest.mark.parametrize("exchange", EXCHANGES, ids=[exchange["name"] for exchange in EXCHANGES])
async def test_exchange(exchange: dict[str, Any], tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        (tmp_path / "received" / "there").write_bytes(bytes(96))  # as on the machine the quota was captured on
        stream = await place.dial()
        for sent, expected in zip(exchange["sent"], exchange["received"], strict=True):
            await stream.write(bytes.fromhex(sent))
            if expected["text"] == "EOF":
                with pytest.raises(EOFError):
                    await frame(stream)
            elif expected["text"] == "i/o timeout":  # no answer: the next one is that to the next frame
                await stream.write(encode_frame(FrameType.TEXT, b"x"))
                assert await frame(stream) == (FrameType.TEXT, b"ACK TEXT 1 bytes")
            else:
                number, payload = await frame(stream)
                assert number == expected["type"]
                assert normalised(payload) == normalised(bytes.fromhex(expected["payload_hex"]))


def normalised(payload: bytes) -> object:
    """The answer, without the times of a trace; their order and the sender's own time stay."""
    if not payload.startswith(b"{"):
        return payload
    answer = json.loads(payload)
    times = [answer.pop(name) for name in ("received_at_ns", "inbox_written_at_ns", "ack_sent_at_ns")]
    assert times == sorted(times)
    return answer


@pytest.mark.parametrize("name", FILES)
def test_inbox_file(name: str) -> None:
    expected = FILES[name]
    data = expected["data"].encode() if "data" in expected else base64.b64decode(expected["data_b64"])
    tags = Tags(expected.get("message_id", ""), expected.get("reply_to", ""))
    made = message_json(Message(expected["type"], data, Addr.parse(expected["from"]), 1.5, tags, None))
    fields = json.loads(made)
    assert fields == {**expected, "received_at": "1970-01-01T00:00:01.5Z"}
    assert list(fields) == sorted(fields)
    assert b": " not in made


def test_names_of_types() -> None:
    assert [type_name(n) for n in (1, 4, 6, 8, 10, 99)] == [
        *("TEXT", "FILE", "UNKNOWN(6)", "GOVERNED", "TAGGED", "UNKNOWN(99)")
    ]
