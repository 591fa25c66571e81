"""Compiled codecs, replay windows, tables and reassembly against the plain-Python reference, by property (L2-L7)."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pilot._fast.addr import Addr, SocketAddr
from pilot._fast.packet import Packet as CompiledPacket
from pilot._fast.packet import PacketError, checksum
from pilot._fast.seal import ReplayWindow, Session, Verdict
from pilot._fast.table import Table
from tests.core.scripted import accepted, dialed
from tests.reference import addr, frames, packet, replay, sack
from tests.reference.addr import Address
from tests.reference.packet import ACK, Packet

NETWORKS = st.integers(0, 0xFFFF)
NODES = st.integers(0, 0xFFFFFFFF)
PORTS = st.integers(0, 0xFFFF)
SEQ = st.integers(0, 0xFFFFFFFF)
ADDRESSES = st.builds(Address, NETWORKS, NODES)

PACKETS = st.builds(
    Packet,
    source=ADDRESSES,
    destination=ADDRESSES,
    protocol=st.integers(0, 255),
    flags=st.integers(0, 15),
    source_port=PORTS,
    destination_port=PORTS,
    seq=SEQ,
    ack=SEQ,
    window=PORTS,
    payload=st.binary(max_size=300),
)


def compiled(a: Address) -> Addr:
    return Addr(a.network, a.node)


def compiled_packet(p: Packet) -> CompiledPacket:
    return CompiledPacket(
        p.flags,
        p.protocol,
        compiled(p.source),
        compiled(p.destination),
        p.source_port,
        p.destination_port,
        p.seq,
        p.ack,
        p.window,
        p.payload,
    )


class TestAddress:
    @given(ADDRESSES)
    def test_forms_agree(self, a: Address) -> None:
        ours = compiled(a)
        assert str(ours) == str(a)
        assert ours.pack() == a.pack()
        assert Addr.parse(str(a)) == Addr.from_bytes(a.pack()) == ours
        assert (ours.is_zero, ours.is_broadcast) == (a.is_zero, a.is_broadcast)

    @given(st.lists(ADDRESSES, max_size=20))
    def test_order_and_hash_agree(self, many: list[Address]) -> None:
        assert [str(a) for a in sorted(map(compiled, many))] == [str(a) for a in sorted(many)]
        assert len(set(map(compiled, many))) == len(set(many))

    @given(st.binary(max_size=20))
    def test_bytes(self, data: bytes) -> None:
        assert Addr.from_bytes(data).pack() == addr.unpack_untrusted(data).pack()

    @given(
        st.one_of(st.text(max_size=30), st.from_regex(r"[0-9]{1,7}:[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{3,5}"))
    )
    @example("0:0000.0000.0001\n")
    @example("٣:0003.0000.0001")
    @example("1" * 100 + ":0001.0000.0001")
    @example("65536:0000.0000.0001")
    def test_parsing_agrees(self, text: str) -> None:
        try:
            expected: str | None = str(addr.parse_untrusted(text))
        except ValueError:
            expected = None
        try:
            got: str | None = str(Addr.parse(text))
        except ValueError:
            got = None
        assert got == expected

    @given(ADDRESSES, PORTS)
    def test_socket_addresses(self, a: Address, port: int) -> None:
        parsed = SocketAddr.parse(f"{a}:{port}")
        assert (str(parsed.addr), parsed.port) == (str(a), port)
        assert addr.parse_socket_untrusted(str(parsed)) == (a, port)


class TestPacket:
    @given(PACKETS)
    def test_encoding_agrees(self, p: Packet) -> None:
        encoded = p.encode()
        ours = compiled_packet(p)
        assert ours.encode() == encoded
        assert CompiledPacket.decode_untrusted(encoded + b"trailing") == ours
        assert hash(CompiledPacket.decode_untrusted(encoded)) == hash(ours)

    @given(PACKETS, st.data())
    def test_damage_is_judged_alike(self, p: Packet, data: Any) -> None:
        damaged = bytearray(p.encode())
        for _ in range(data.draw(st.integers(0, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
        self.alike(bytes(damaged))

    @given(st.binary(max_size=80))
    def test_noise_is_judged_alike(self, data: bytes) -> None:
        self.alike(data)

    def alike(self, data: bytes) -> None:
        try:
            expected: bytes | None = packet.decode_untrusted(data).encode()
        except packet.PacketError:
            expected = None
        try:
            got: bytes | None = CompiledPacket.decode_untrusted(data).encode()
        except PacketError:
            got = None
        assert got == expected

    @given(st.binary(max_size=500))
    def test_checksum(self, data: bytes) -> None:
        import zlib

        assert checksum(data) == zlib.crc32(data)


class TestSeal:
    @given(st.binary(max_size=2000), st.binary(min_size=32, max_size=32), NODES, st.binary(min_size=4, max_size=4))
    def test_sealing_agrees(self, inner: bytes, key: bytes, node: int, prefix: bytes) -> None:
        session = Session(key, node, 9, prefix, 0.0, authenticated=True, peer_x25519=bytes(32))
        for counter in (1, 2):
            assert session.seal(inner) == frames.seal(key, node, prefix, counter, inner)
        opening = Session(key, 9, node, b"abcd", 0.0, authenticated=True, peer_x25519=bytes(32))
        assert opening.open_untrusted(frames.seal(key, node, prefix, 7, inner)) == (Verdict.ACCEPT, inner)

    @given(st.binary(max_size=200), st.data())
    def test_damage_never_opens(self, inner: bytes, data: Any) -> None:
        key = bytes(32)
        frame = bytearray(frames.seal(key, 2, b"abcd", 1, inner))
        at = data.draw(st.integers(4, len(frame) - 1))
        frame[at] ^= data.draw(st.integers(1, 255))
        session = Session(key, 1, 2, b"wxyz", 0.0, authenticated=True, peer_x25519=bytes(32))
        assert session.open_untrusted(bytes(frame)) == (Verdict.AUTH_FAILURE, b"")
        assert session.received == 0

    @given(st.binary(max_size=100))
    def test_noise_never_opens(self, noise: bytes) -> None:
        session = Session(bytes(32), 1, 2, b"wxyz", 0.0, authenticated=True, peer_x25519=bytes(32))
        assert session.open_untrusted(noise)[0] in (Verdict.MALFORMED, Verdict.AUTH_FAILURE)

    def test_a_wiped_session_does_nothing(self) -> None:
        session = Session(bytes(32), 1, 2, b"wxyz", 0.0, authenticated=True, peer_x25519=bytes(32))
        frame = frames.seal(bytes(32), 2, b"abcd", 1, b"inner")
        session.wipe()
        assert session.open_untrusted(frame) == (Verdict.MALFORMED, b"")
        try:
            session.seal(b"inner")
        except ValueError:
            return
        raise AssertionError("a wiped session sealed")


COUNTERS = st.one_of(
    st.integers(1, 600),
    st.integers(2**64 - 600, 2**64 - 1),
    st.integers(1, 2**64 - 1),
    st.integers(1, 30).map(lambda n: n * 64),
)


class TestReplayWindow:
    @given(st.lists(st.tuples(st.sampled_from([b"aaaa", b"bbbb", b"cccc", b"dddd", b"eeee"]), COUNTERS), max_size=80))
    @settings(max_examples=300)
    def test_agrees(self, sequence: list[tuple[bytes, int]]) -> None:
        for width in (64, 256):
            ours, reference = ReplayWindow(width), replay.EpochWindows(width)
            for prefix, counter in sequence:
                assert self.named(ours.accept(prefix, counter)) == self.plain(reference.check(prefix, counter))

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=30)
    def test_a_wandering_counter_agrees(self, rng: random.Random) -> None:
        ours, reference = ReplayWindow(1024), replay.EpochWindows(1024)
        at = 5000
        for _ in range(400):
            at = max(1, at + rng.choice([1, 1, 1, 2, 64, 200, 1023, 1024, 1025, -1, -5, -64, -1000, -1023, -1024]))
            assert self.named(ours.accept(b"abcd", at)) == self.plain(reference.check(b"abcd", at))

    def named(self, verdict: Verdict) -> str:
        return verdict.name.lower()

    def plain(self, verdict: str) -> str:
        return {"too_many_epochs": "too_many_prefixes"}.get(verdict, "accept" if "accept" in verdict else verdict)


class TestTable:
    @given(
        st.lists(st.tuples(st.sampled_from(["put", "del", "get"]), st.integers(0, 40), st.integers(0, 3)), max_size=300)
    )
    def test_is_a_dict(self, steps: list[tuple[str, int, int]]) -> None:
        table, reference = Table(), {}
        for step, low, high in steps:
            key = (high << 40, low << 16)
            if step == "put":
                value = object()
                table.store(*key, value)
                reference[key] = value
            elif step == "del":
                assert table.discard(*key) is (reference.pop(key, None) is not None)
            assert table.lookup(*key) is reference.get(key)
            assert len(table) == len(reference) == table.count
        assert {id(value) for value in table.values()} == {id(value) for value in reference.values()}


class TestReassembly:
    """Through a whole datapath: what is held, acknowledged, SACKed and read, against a set of byte positions."""

    @given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=60), SEQ)
    @settings(max_examples=100, deadline=None)
    def test_against_a_set_of_bytes(self, segments: list[tuple[int, int]], isn: int) -> None:
        whole = bytes(n % 251 for n in range(400))
        _, talk = accepted(isn=isn)
        have: set[int] = set()
        for at, length in segments:
            talk.data(whole[at : at + length], offset=at)
            have |= set(range(at, at + length))
            edge = 0
            while edge in have:
                edge += 1
            answers = talk.seen()
            if answers:
                assert answers[-1].ack == edge
                if answers[-1].kind == "SACK":
                    blocks = talk.blocks(answers[-1])
                    for left, right in blocks:
                        assert left > edge
                        assert set(range(left, right)) <= have
                        assert left - 1 not in have
                        assert right not in have
                    assert len(set(blocks)) == len(blocks)
                else:
                    assert not [n for n in have if n > edge]
        got = talk.core.read(1000) or b""
        assert got == whole[: len(got)]
        assert len(got) == next((n for n in range(401) if n not in have), 0)

    @given(
        st.lists(st.tuples(st.integers(-50, 1100), st.integers(-50, 1100)), min_size=1, max_size=4),
        st.integers(0, 1000),
    )
    @settings(max_examples=150, deadline=None)
    def test_sack_or_data(self, blocks: list[tuple[int, int]], acked: int) -> None:
        """1000 bytes are out, `acked` of them acknowledged: what counts as SACK is what the reference calls one and
        what lies within what was sent; anything else is delivered."""
        network, talk = dialed()
        for _ in range(10):
            talk.core.write(bytes(100))
            network.settle()
        talk.ack(acked)
        payload = sack.encode([(talk.theirs(a), talk.theirs(b)) for a, b in blocks])
        talk.peer.send(talk.make(ACK, talk.at(0), talk.theirs(acked), payload))
        strict = sack.decode_untrusted(payload, strict=True) is not None
        within = all(0 <= a < b <= 1000 for a, b in blocks)
        assert (talk.core.readable == 0) is (strict and within)
        if talk.core.readable:
            assert talk.core.read(100) == payload
        assert talk.core.stats().in_flight >= 0

    @given(st.binary(max_size=60))
    @settings(max_examples=100, deadline=None)
    def test_any_bytes_that_begin_like_a_sack_arrive(self, rest: bytes) -> None:
        _, talk = accepted()
        payload = b"SACK" + rest
        talk.data(payload)
        assert talk.core.read(1000) == payload
