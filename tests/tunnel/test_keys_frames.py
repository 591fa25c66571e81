"""PILA, PILK and the session key against the vectors (wire.md 4, 5, 6; checklist 5-7)."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random, SystemRandom

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.tunnel.frames import (
    FrameError,
    Pila,
    Pilk,
    encode_pila,
    encode_pilk,
    parse_exchange_untrusted,
    signature_holds_untrusted,
    signed_message,
)
from pilot.tunnel.keys import MAX_SESSIONS_PER_PAIR, KeyPair, RefusedKeys

VECTORS = Path(__file__).parents[1] / "vectors"
EXCHANGE = json.loads((VECTORS / "wire_keyexchange.json").read_text())
KDF = json.loads((VECTORS / "wire_kdf.json").read_text())
A, B = EXCHANGE["identities"]["A"], EXCHANGE["identities"]["B"]


class Signer:
    def __init__(self, seed: str) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
        self.public_key = self.private.public_key().public_bytes_raw()
        self.signed = 0

    def sign(self, message: bytes) -> bytes:
        self.signed += 1
        return self.private.sign(message)


@pytest.mark.parametrize("vector", EXCHANGE["pila"], ids=lambda v: v["name"])
def test_pila_bytes(vector: dict) -> None:
    frame = bytes.fromhex(vector["frame"])
    pila = parse_exchange_untrusted(frame)
    assert isinstance(pila, Pila)
    assert pila.node == vector["node_id"]
    assert signed_message(pila.node, pila.x25519).hex() == vector["signed_bytes"]
    assert signature_holds_untrusted(pila)
    assert encode_pila(*pila) == frame
    assert len(frame) == vector["length"] == 136


@pytest.mark.parametrize("who", [A, B], ids=["A", "B"])
def test_a_pair_announces_itself_as_the_vectors_do(who: dict) -> None:
    pair, signer = KeyPair(bytes.fromhex(who["x25519_private"])), Signer(who["ed25519_seed"])
    assert pair.public.hex() == who["x25519_public"]
    frames = [bytes.fromhex(v["frame"]) for v in EXCHANGE["pila"] + EXCHANGE["pilk"]]
    assert pair.pila(who["node_id"], signer) in frames
    assert pair.pilk(who["node_id"]) in frames
    pair.pila(who["node_id"], signer)
    assert signer.signed == 1
    assert pair.pila(77, signer)[4:8] == b"\0\0\0M"


@pytest.mark.parametrize("vector", EXCHANGE["pila_reject"], ids=lambda v: v["name"])
def test_bad_pilas(vector: dict) -> None:
    frame = bytes.fromhex(vector["frame"])
    if len(frame) < 136:
        with pytest.raises(FrameError):
            parse_exchange_untrusted(frame)
        return
    pila = parse_exchange_untrusted(frame)
    registered = {A["node_id"]: A["ed25519_public"], B["node_id"]: B["ed25519_public"]}[pila.node]
    assert not (signature_holds_untrusted(pila) and pila.ed25519.hex() == registered)


@pytest.mark.parametrize("vector", EXCHANGE["pila_accept_variants"], ids=lambda v: v["name"])
def test_pila_variants(vector: dict) -> None:
    pila = parse_exchange_untrusted(bytes.fromhex(vector["frame"]))
    assert signature_holds_untrusted(pila)
    assert pila.ed25519.hex() == B["ed25519_public"]


@pytest.mark.parametrize("vector", EXCHANGE["pilk"], ids=lambda v: v["name"])
def test_pilk_bytes(vector: dict) -> None:
    frame = bytes.fromhex(vector["frame"])
    pilk = parse_exchange_untrusted(frame + b"zz")
    assert isinstance(pilk, Pilk)
    assert encode_pilk(*pilk) == frame


@pytest.mark.parametrize("vector", EXCHANGE["pilk_reject"], ids=lambda v: v["name"])
def test_bad_pilks(vector: dict) -> None:
    with pytest.raises(FrameError):
        parse_exchange_untrusted(bytes.fromhex(vector["frame"]))


@pytest.mark.parametrize("length", range(137))
def test_no_prefix_of_a_frame_raises_anything_else(length: int) -> None:
    for vector in EXCHANGE["pila"] + EXCHANGE["pilk"]:
        frame = bytes.fromhex(vector["frame"])[:length]
        try:
            parse_exchange_untrusted(frame)
        except FrameError:
            assert length < len(bytes.fromhex(vector["frame"]))


@pytest.mark.parametrize("case", KDF["cases"], ids=lambda c: c["name"])
def test_session_key(case: dict) -> None:
    a, b = KeyPair(bytes.fromhex(case["a_private"])), KeyPair(bytes.fromhex(case["b_private"]))
    assert (a.public.hex(), b.public.hex()) == (case["a_public"], case["b_public"])
    assert a.session_key_untrusted(b.public).hex() == case["aes256_key"]
    assert b.session_key_untrusted(a.public).hex() == case["aes256_key"]


@pytest.mark.parametrize("point", KDF["low_order_points_must_be_rejected"], ids=lambda p: p["peer_public"][:8])
def test_low_order_points(point: dict) -> None:
    pair = KeyPair.generate(SystemRandom())
    key = bytes.fromhex(point["peer_public"])
    with pytest.raises(FrameError):
        pair.session_key_untrusted(key)
    assert pair.unused
    assert pair.fits(key)


def test_a_pair_meets_a_key_once_and_not_too_many() -> None:
    random = Random(1)
    pair = KeyPair.generate(random)
    peers = [KeyPair.generate(random).public for _ in range(MAX_SESSIONS_PER_PAIR)]
    assert pair.unused
    for peer in peers:
        assert pair.fits(peer)
        pair.session_key_untrusted(peer)
        assert not pair.fits(peer)
    assert not pair.unused
    assert not pair.fits(KeyPair.generate(random).public)


def test_a_wiped_pair_derives_nothing() -> None:
    pair = KeyPair.generate(Random(1))
    pair.wipe()
    with pytest.raises(FrameError):
        pair.session_key_untrusted(KeyPair.generate(Random(2)).public)


def test_refused_keys_are_bounded_and_end() -> None:
    refused = RefusedKeys(nodes=3, per_node=2)
    for node in range(5):
        for key in range(4):
            refused.add(node, b"%d" % key, 10.0 + key)
    assert len(refused) == 6
    assert not refused.refuses(0, b"3", 5.0)
    assert not refused.refuses(4, b"0", 5.0)
    assert refused.refuses(4, b"3", 5.0)
    assert not refused.refuses(4, b"3", 13.0)
