"""The wire vectors against the compiled codecs: addresses, packets, sealed frames, replay windows (L2, L6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.addr import Addr, SocketAddr
from pilot._fast.packet import Packet, PacketError, checksum
from pilot._fast.seal import ReplayWindow, Session, Verdict
from tests.core.virtual import Network, VirtualNode, address_of
from tests.reference import frames

VECTORS = Path(__file__).parent.parent / "vectors"


def load(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / name).read_text())


def by_name(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case.get("name") or repr(case.get("text"))) for case in cases]


ADDRESS = load("wire_address.json")
PACKET = load("wire_packet.json")
ENCRYPTED = load("wire_encrypted.json")
REPLAY = load("wire_replay_window.json")
KEY = bytes.fromhex(ENCRYPTED["identities"]["aes256_key"])


class TestAddress:
    @pytest.mark.parametrize("case", by_name(ADDRESS["valid"]))
    def test_forms(self, case: dict[str, Any]) -> None:
        addr = Addr(case["network"], case["node"])
        assert str(addr) == case["text"]
        assert addr.pack().hex() == case["bytes"]
        assert Addr.parse(case["text"]) == addr == Addr.from_bytes(bytes.fromhex(case["bytes"]))
        assert addr.is_zero is case["is_zero"]
        assert addr.is_broadcast is case["is_broadcast"]

    @pytest.mark.parametrize("case", by_name(ADDRESS["parse_accept"]))
    def test_parse_accepts(self, case: dict[str, Any]) -> None:
        assert str(Addr.parse(case["text"])) == case["canonical"]
        assert Addr.parse(case["text"]).pack().hex() == case["bytes"]

    @pytest.mark.parametrize("case", by_name(ADDRESS["parse_reject"]))
    def test_parse_rejects(self, case: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            Addr.parse(case["text"])

    @pytest.mark.parametrize("case", by_name(ADDRESS["socket_accept"]))
    def test_socket_accepts(self, case: dict[str, Any]) -> None:
        parsed = SocketAddr.parse(case["text"])
        assert (parsed.addr.pack().hex(), parsed.port) == (case["bytes"], case["port"])

    @pytest.mark.parametrize("case", by_name(ADDRESS["socket_reject"]))
    def test_socket_rejects(self, case: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            SocketAddr.parse(case["text"])

    @pytest.mark.parametrize("case", ADDRESS["short_bytes"])
    def test_short_bytes_are_the_zero_address(self, case: dict[str, Any]) -> None:
        assert str(Addr.from_bytes(bytes.fromhex(case["bytes"]))) == case["result"]


class TestPacket:
    @pytest.mark.parametrize("case", by_name(PACKET["encode"]))
    def test_encodes_and_decodes(self, case: dict[str, Any]) -> None:
        built = Packet(
            case["flags"],
            case["protocol"],
            Addr(case["src_net"], case["src_node"]),
            Addr(case["dst_net"], case["dst_node"]),
            case["src_port"],
            case["dst_port"],
            case["seq"],
            case["ack"],
            case["window"],
            bytes.fromhex(case["payload"]),
        )
        encoded = bytes.fromhex(case["encoded"])
        assert built.encode() == encoded
        assert Packet.decode_untrusted(encoded) == built

    @pytest.mark.parametrize("case", by_name(PACKET["decode_accept"]))
    def test_accepts(self, case: dict[str, Any]) -> None:
        data = bytes.fromhex(case["bytes"])
        decoded = Packet.decode_untrusted(data)
        assert data.startswith(decoded.encode())
        if "payload" in case:
            assert decoded.payload.hex() == case["payload"]

    @pytest.mark.parametrize("case", by_name(PACKET["decode_reject"]))
    def test_rejects(self, case: dict[str, Any]) -> None:
        said = {
            "too_short": "fewer than 34",
            "truncated": "shorter than its",
            "checksum_mismatch": "CRC",
            "unsupported_version": "version",
        }
        with pytest.raises(PacketError, match=said[case["error"]]):
            Packet.decode_untrusted(bytes.fromhex(case["bytes"]))

    def test_payload_limit(self) -> None:
        ends = Addr(0, 1), Addr(0, 2)
        largest = Packet(2, 1, *ends, 1, 2, payload=bytes(PACKET["max_payload"]))
        assert Packet.decode_untrusted(largest.encode()) == largest
        with pytest.raises(ValueError, match="65535"):
            Packet(2, 1, *ends, 1, 2, payload=bytes(PACKET["max_payload"] + 1))

    @pytest.mark.parametrize("case", PACKET["crc32"])
    def test_crc(self, case: dict[str, Any]) -> None:
        assert f"{checksum(bytes.fromhex(case['bytes'])):08x}" == case["crc"]


def session(own: int = 3, peer: int = 2, prefix: str = "00000000", window: int = 256, key: bytes = KEY) -> Session:
    return Session(key, own, peer, bytes.fromhex(prefix), 0.0, authenticated=True, peer_x25519=bytes(32), window=window)


class TestSealed:
    def test_seals_in_counter_order(self) -> None:
        sealing = session(own=2, peer=3, prefix="a1b2c3d4")
        for case in ENCRYPTED["frames"][:5]:
            assert sealing.seal(bytes.fromhex(case["plaintext"])).hex() == case["frame"]
            assert sealing.sent == case["counter"]

    @pytest.mark.parametrize("case", by_name(ENCRYPTED["frames"]))
    def test_opens(self, case: dict[str, Any]) -> None:
        opening = session()
        assert opening.open_untrusted(bytes.fromhex(case["frame"])) == (
            Verdict.ACCEPT,
            bytes.fromhex(case["plaintext"]),
        )
        assert opening.peer_prefixes == [bytes.fromhex(case["nonce_prefix"])]
        assert opening.open_untrusted(bytes.fromhex(case["frame"])) == (Verdict.REPLAY, b"")

    @pytest.mark.parametrize("case", by_name(ENCRYPTED["accept_variants"]))
    def test_variants_open(self, case: dict[str, Any]) -> None:
        verdict, inner = session().open_untrusted(bytes.fromhex(case["frame"]))
        assert verdict == Verdict.ACCEPT
        Packet.decode_untrusted(inner)

    @pytest.mark.parametrize("case", by_name(ENCRYPTED["reject"]))
    def test_rejected_at_the_right_step(self, case: dict[str, Any]) -> None:
        verdict, inner = session().open_untrusted(bytes.fromhex(case["frame"]))
        if case["reaction"].startswith("decrypts"):
            assert verdict == Verdict.ACCEPT
            assert inner == frames.open_untrusted(KEY, bytes.fromhex(case["frame"])).plaintext
        else:
            expected = Verdict.AUTH_FAILURE if "authentication" in case["reaction"] else Verdict.MALFORMED
            assert (verdict, inner) == (expected, b"")

    @pytest.mark.parametrize("case", by_name(ENCRYPTED["accept_variants"] + ENCRYPTED["reject"]))
    def test_reaction_of_a_datapath(self, case: dict[str, Any]) -> None:
        """Node 3 holds the session with node 2; a rejected frame is never answered and counts for nothing."""
        network = Network()
        node = VirtualNode(network, 3)
        peer = node.datapath.add_peer(2)
        node.datapath.install_session(peer, session(window=8192), network.now)
        node.port.deliver(bytes.fromhex(case["frame"]), address_of(2), network.now)
        network.run(1.0)
        accepted = case in ENCRYPTED["accept_variants"]
        assert peer.last_heard == (network.now - 1.0 if accepted else 0.0)
        assert accepted or network.log == []
        assert bool(node.control.named("publish")) is ("src_spoofed" in case["reaction"])
        rejected = [call[2] for call in node.control.named("rejected")]
        assert rejected == ([Verdict.AUTH_FAILURE] if case["reaction"].startswith("authentication") else [])


class TestReplay:
    @pytest.mark.parametrize("case", by_name(REPLAY["sequences_ignoring_prefix_as_1_18_0"]))
    def test_sequence(self, case: dict[str, Any]) -> None:
        window = ReplayWindow(REPLAY["window"])
        verdicts = [window.accept(b"\1\2\3\4", int(counter)).name.lower() for counter in case["counters"]]
        assert verdicts == case["verdicts"]

    @pytest.mark.parametrize("case", by_name(REPLAY["epoch_cases"]))
    def test_epochs(self, case: dict[str, Any]) -> None:
        window = ReplayWindow(REPLAY["window"])
        for (prefix, counter), verdict in zip(case["frames"], case["verdict_with_epochs"], strict=True):
            assert window.accept(bytes.fromhex(prefix), counter).name.lower() == verdict.split("_")[0]
        assert window.prefixes == 2

    @pytest.mark.parametrize("case", by_name(REPLAY["epoch_cases"]))
    def test_epochs_of_a_session(self, case: dict[str, Any]) -> None:
        opening = session()
        for (prefix, counter), verdict in zip(case["frames"], case["verdict_with_epochs"], strict=True):
            frame = frames.seal(KEY, 2, bytes.fromhex(prefix), counter, b"inner")
            assert opening.open_untrusted(frame)[0].name.lower() == verdict.split("_")[0]

    def test_fifth_prefix_is_refused_and_none_is_forgotten(self) -> None:
        window = ReplayWindow(256)
        for n in range(4):
            assert window.accept(bytes([n, 0, 0, 0]), 5) == Verdict.ACCEPT
        assert window.accept(bytes([9, 0, 0, 0]), 5) == Verdict.TOO_MANY_PREFIXES
        for n in range(4):
            assert window.accept(bytes([n, 0, 0, 0]), 5) == Verdict.REPLAY
            assert window.accept(bytes([n, 0, 0, 0]), 6) == Verdict.ACCEPT

    def test_counter_zero_is_accepted_once(self) -> None:
        """1.18.0 accepts it again and again; a replay of frame 0 is a replay."""
        window = ReplayWindow(256)
        assert window.accept(b"abcd", 0) == Verdict.ACCEPT
        assert window.accept(b"abcd", 0) == Verdict.REPLAY
