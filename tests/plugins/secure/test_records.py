"""Records, key and authentication frame of the secure channel against the vectors; limits; the replay cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from pilot.coreapi import Addr, ClosedError, InvalidValueError, PilotError
from pilot.plugins.secure import ANY_NODE, Authentication, ReplayCache
from pilot.plugins.secure import records as records_module
from pilot.plugins.secure import replay as replay_module
from pilot.plugins.secure.authentication import AuthFrame
from pilot.plugins.secure.handshake import Exchanged, derive_untrusted
from pilot.plugins.secure.records import MAX_RECORD_BYTES, Opener, Role, Sealer, record_length_untrusted
from tests.plugins.fakes import Identity

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["secure_channel_port_443"]
FRAME = VECTORS["auth_frame"]
KEY = bytes(range(32))
PLAINTEXTS = {Role.CLIENT: bytes.fromhex(VECTORS["client_first_record_plaintext_hex"]), Role.SERVER: b"world"}
"""That of the server is not in the vectors: it is what opens."""


def vector(name: str) -> bytes:
    return bytes.fromhex(VECTORS[f"{name}_hex"])


# ---------------------------------------------------------------------------------------------- records


def test_vector_of_the_key() -> None:
    client = X25519PrivateKey.from_private_bytes(vector("client_private"))
    server = X25519PrivateKey.from_private_bytes(vector("server_private"))
    assert client.public_key().public_bytes_raw() == vector("client_hello")
    assert derive_untrusted(client, vector("server_hello")) == vector("aes_key")
    assert derive_untrusted(server, vector("client_hello")) == vector("aes_key")


@pytest.mark.parametrize("role", Role, ids=lambda role: role.name.lower())
def test_vector_of_the_first_record(role: Role) -> None:
    record = vector(f"{role.name.lower()}_first_record")
    plaintext = PLAINTEXTS[role]
    assert Sealer(vector("aes_key"), role).seal(plaintext) == record
    assert record_length_untrusted(record) == len(record) - 4
    assert Opener(vector("aes_key"), role).open_untrusted(record[4:]) == plaintext


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_what_is_sealed_is_opened_in_order(pieces: list[bytes]) -> None:
    sealer, opener = Sealer(KEY, Role.CLIENT), Opener(KEY, Role.CLIENT)
    assert [opener.open_untrusted(sealer.seal(piece)[4:]) for piece in pieces] == pieces


def test_repeated_left_out_and_reflected_records_are_refused() -> None:
    sealer, opener = Sealer(KEY, Role.CLIENT), Opener(KEY, Role.CLIENT)
    first, second, third = (sealer.seal(bytes([n]))[4:] for n in range(3))
    assert opener.open_untrusted(first) == b"\x00"
    with pytest.raises(InvalidValueError, match="record 1 came after record 1"):
        opener.open_untrusted(first)
    with pytest.raises(InvalidValueError, match="record 3 came after record 1"):
        opener.open_untrusted(third)
    with pytest.raises(InvalidValueError, match="role"):
        opener.open_untrusted(Sealer(KEY, Role.SERVER).seal(b"x")[4:])
    assert opener.open_untrusted(second) == b"\x01"  # a refused one moves nothing


def test_every_flipped_bit_is_noticed() -> None:
    record = Sealer(KEY, Role.CLIENT).seal(b"payload")[4:]
    for bit in range(8 * len(record)):
        changed = bytearray(record)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidValueError):
            Opener(KEY, Role.CLIENT).open_untrusted(bytes(changed))
    with pytest.raises(InvalidValueError, match="not made with the key"):
        Opener(bytes(32), Role.CLIENT).open_untrusted(record)


@pytest.mark.parametrize("size", [0, 1, 12, 27])
def test_a_record_too_short_for_a_tag(size: int) -> None:
    with pytest.raises(InvalidValueError, match="too short"):
        Opener(KEY, Role.CLIENT).open_untrusted(bytes(size))


@pytest.mark.parametrize(("length", "fine"), [(0, False), (11, False), (12, True), (16 << 20, True)])
def test_lengths(length: int, fine: bool) -> None:
    assert MAX_RECORD_BYTES == 16 << 20
    if fine:
        assert record_length_untrusted(length.to_bytes(4, "big")) == length
    for wrong in [length] * (not fine) + [(16 << 20) + 1, 2**32 - 1]:
        with pytest.raises(InvalidValueError, match=f"{wrong} bytes is announced"):
            record_length_untrusted(wrong.to_bytes(4, "big"))


def test_a_key_protects_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_SEALED_BYTES", 100)
    sealer = Sealer(KEY, Role.CLIENT)
    sealer.seal(bytes(60))
    with pytest.raises(ClosedError, match="open a new channel"):
        sealer.seal(bytes(41))
    sealer.seal(bytes(40))
    monkeypatch.setattr(records_module, "MAX_SEALED_BYTES", 1 << 38)
    monkeypatch.setattr(records_module, "MAX_SEALED_RECORDS", 2)
    with pytest.raises(ClosedError, match="2 records"):
        sealer.seal(b"")


def test_keys_are_not_shown() -> None:
    exchanged = Exchanged(KEY, bytes(32), bytes(32))
    for thing in (exchanged, Sealer(KEY, Role.CLIENT), Opener(KEY, Role.CLIENT)):
        assert KEY.hex() not in repr(thing)
        assert repr(KEY) not in repr(thing)


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (bytes(32), "no secret"),
        (b"\x01" + bytes(31), "no secret"),
        (bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"), "no secret"),
        (X25519PrivateKey.from_private_bytes(KEY).public_key().public_bytes_raw(), "own key back"),
    ],
)
def test_hellos_that_are_no_keys(peer: bytes, message: str) -> None:
    with pytest.raises(PilotError, match=message):
        derive_untrusted(X25519PrivateKey.from_private_bytes(KEY), peer)


# --------------------------------------------------------------------------------------- authentication


class Signer(Identity):
    """The node of the vector."""

    def __init__(self) -> None:
        super().__init__(FRAME["node_id"])
        self.key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(FRAME["ed25519_seed_hex"]))


SIGNER = Signer()
FRAME_BYTES = bytes.fromhex(FRAME["frame_hex"])
SERVER_HELLO = vector("server_hello")


def judge(**options: Any) -> Authentication:
    """Node 1, which expects node 2 and has its key."""
    settings = {"peer_key": SIGNER.public_key, "wall": lambda: float(FRAME["timestamp"]), **options}
    return Authentication(Identity(1), **settings)


def test_vector_of_the_frame() -> None:
    ours = Authentication(
        SIGNER, peer_key=bytes(32), wall=lambda: FRAME["timestamp"] + 0.9,
        nonce=lambda: bytes.fromhex(FRAME["nonce_hex"]),
    )  # fmt: skip
    assert ours.frame(SERVER_HELLO) == FRAME_BYTES
    parsed = AuthFrame.parse_untrusted(FRAME_BYTES)
    assert parsed.signed(SERVER_HELLO) == bytes.fromhex(FRAME["signed_hex"])
    assert parsed.pack() == FRAME_BYTES
    assert len(FRAME_BYTES) == FRAME["frame_len"]


async def test_the_vector_is_accepted_once() -> None:
    auth = judge()
    assert await auth.check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 2)) == 2
    with pytest.raises(PilotError, match="auth nonce replay detected"):
        await auth.check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 2))


@pytest.mark.parametrize("bit", range(0, 92 * 8, 5))
async def test_a_changed_frame_is_refused(bit: int) -> None:
    changed = bytearray(FRAME_BYTES)
    changed[bit // 8] ^= 1 << bit % 8
    auth = judge()
    with pytest.raises(PilotError):
        await auth.check_untrusted(bytes(changed), SERVER_HELLO, Addr(0, 2))
    assert len(auth.replays) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peer_key": Identity(3).public_key}, "auth signature verification failed"),
        ({"peer_key": b"\xff" * 32}, "auth signature verification failed"),
        ({"peer_node": 3}, "auth frame of node 2 instead of node 3"),
        ({"wall": lambda: FRAME["timestamp"] + 6.0}, "-6 s ahead"),
        ({"wall": lambda: FRAME["timestamp"] - 6.0}, " 6 s ahead"),
    ],
)
async def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PilotError, match=message):
        await judge(**options).check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 2))


@pytest.mark.parametrize("seconds", [-5, 0, 5.9])
async def test_clocks_may_differ_by_five_seconds(seconds: float) -> None:
    auth = judge(wall=lambda: FRAME["timestamp"] + seconds)
    assert await auth.check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 2)) == 2


async def test_a_frame_belongs_to_one_key_exchange() -> None:
    with pytest.raises(PilotError, match="signature"):
        await judge().check_untrusted(FRAME_BYTES, vector("client_hello"), Addr(0, 2))


async def test_who_is_expected() -> None:
    with pytest.raises(PilotError, match="node 2 instead of node 9"):
        await judge().check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 9))
    assert await judge(peer_node=ANY_NODE).check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 9)) == 2
    assert await judge(peer_node=2).check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 9)) == 2


async def test_lookup_of_keys() -> None:
    keys = {2: SIGNER.public_key}

    async def lookup(node_id: int) -> bytes | None:
        return keys.get(node_id)

    auth = judge(peer_key=None, lookup=lookup)
    assert await auth.check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 2)) == 2
    keys.clear()
    with pytest.raises(PilotError, match="unknown peer node 2: no public key found"):
        await auth.check_untrusted(FRAME_BYTES, SERVER_HELLO, Addr(0, 2))


def test_settings() -> None:
    with pytest.raises(InvalidValueError, match="either the key"):
        Authentication(Identity(1))
    with pytest.raises(InvalidValueError, match="32 bytes"):
        Authentication(Identity(1), peer_key=b"short")
    with pytest.raises(InvalidValueError, match="registered"):
        Authentication(Identity(0), peer_key=bytes(32)).frame(bytes(32))
    with pytest.raises(InvalidValueError, match="92 bytes"):
        AuthFrame.parse_untrusted(bytes(91))


# ------------------------------------------------------------------------------------------ replay cache


def nonce(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_nonces_are_remembered_for_an_hour() -> None:
    now = [0.0]
    cache = ReplayCache(lambda: now[0])
    cache.add(1, nonce(1))
    now[0] = 3599.0
    with pytest.raises(PilotError, match="auth nonce replay detected"):
        cache.add(2, nonce(1))
    now[0] = 3600.0
    cache.add(2, nonce(1))
    assert len(cache) == 1


def test_a_full_cache_refuses_and_empties_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "MAX_NONCES", 5)
    monkeypatch.setattr(replay_module, "MAX_NONCES_PER_NODE", 3)
    now = [0.0]
    cache = ReplayCache(lambda: now[0])
    for number in range(3):
        cache.add(1, nonce(number))
    with pytest.raises(PilotError, match="auth replay cache full"):
        cache.add(1, nonce(3))
    cache.add(2, nonce(3))  # others still can
    cache.add(3, nonce(4))
    with pytest.raises(PilotError, match="auth replay cache full"):
        cache.add(4, nonce(5))
    assert len(cache) == 5
    now[0] = 3600.0
    cache.add(1, nonce(0))
    assert len(cache) == 1
