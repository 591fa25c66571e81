"""The plain-Python reference of the wire against the vectors (L2-L7)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.reference import addr, beacon, frames, packet, replay, sack
from tests.reference.addr import Address

VECTORS = Path(__file__).parent / "vectors"


def load(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / name).read_text())


def by_name(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case.get("name")) for case in cases]


PACKET = load("wire_packet.json")
KDF = load("wire_kdf.json")
EXCHANGE = load("wire_keyexchange.json")
ENCRYPTED = load("wire_encrypted.json")
ADDRESS = load("wire_address.json")
MISC = load("wire_misc.json")
PLAINTEXT = load("wire_plaintext.json")
BEACON = load("wire_beacon.json")
REPLAY = load("wire_replay_window.json")
STREAMS = load("streams.json")

IDENTITIES = EXCHANGE["identities"]
REGISTERED = {who["node_id"]: bytes.fromhex(who["ed25519_public"]) for who in (IDENTITIES["A"], IDENTITIES["B"])}
KEY = bytes.fromhex(ENCRYPTED["identities"]["aes256_key"])


def x25519(hexadecimal: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(hexadecimal))


class TestPacket:
    @pytest.mark.parametrize("case", by_name(PACKET["encode"]))
    def test_encodes_and_decodes(self, case: dict[str, Any]) -> None:
        built = packet.Packet(
            Address(case["src_net"], case["src_node"]),
            Address(case["dst_net"], case["dst_node"]),
            case["protocol"],
            case["flags"],
            case["src_port"],
            case["dst_port"],
            case["seq"],
            case["ack"],
            case["window"],
            bytes.fromhex(case["payload"]),
            case["version"],
        )
        encoded = bytes.fromhex(case["encoded"])
        assert built.encode() == encoded
        assert encoded[30:34].hex() == case["checksum"]
        assert packet.decode_untrusted(encoded) == built

    @pytest.mark.parametrize("case", by_name(PACKET["decode_accept"]))
    def test_accepts(self, case: dict[str, Any]) -> None:
        data = bytes.fromhex(case["bytes"])
        decoded = packet.decode_untrusted(data)
        assert data.startswith(decoded.encode())
        if "payload" in case:
            assert decoded.payload.hex() == case["payload"]

    @pytest.mark.parametrize("case", by_name(PACKET["decode_reject"]))
    def test_rejects(self, case: dict[str, Any]) -> None:
        with pytest.raises(packet.PacketError, match=f"^{case['error']}$"):
            packet.decode_untrusted(bytes.fromhex(case["bytes"]))

    def test_payload_limit(self) -> None:
        assert PACKET["max_payload"] == packet.MAX_PAYLOAD
        largest = packet.Packet(Address(0, 1), Address(0, 2), payload=bytes(packet.MAX_PAYLOAD))
        assert packet.decode_untrusted(largest.encode()) == largest
        with pytest.raises(ValueError, match="too large"):
            packet.Packet(Address(0, 1), Address(0, 2), payload=bytes(packet.MAX_PAYLOAD + 1)).encode()

    @pytest.mark.parametrize("case", PACKET["crc32"])
    def test_crc(self, case: dict[str, Any]) -> None:
        assert f"{zlib.crc32(bytes.fromhex(case['bytes'])):08x}" == case["crc"]


class TestKeys:
    @pytest.mark.parametrize("case", by_name(KDF["cases"]))
    def test_derivation(self, case: dict[str, Any]) -> None:
        a, b = x25519(case["a_private"]), x25519(case["b_private"])
        assert frames.public_bytes(a).hex() == case["a_public"]
        assert frames.public_bytes(b).hex() == case["b_public"]
        assert frames.session_key(a, frames.public_bytes(b)).hex() == case["aes256_key"]
        assert frames.session_key(b, frames.public_bytes(a)).hex() == case["aes256_key"]

    def test_info(self) -> None:
        assert frames.INFO.hex() == KDF["info"]

    @pytest.mark.parametrize("case", KDF["low_order_points_must_be_rejected"])
    def test_low_order_points(self, case: dict[str, Any]) -> None:
        with pytest.raises(frames.FrameError, match="low-order"):
            frames.session_key(x25519(KDF["cases"][0]["a_private"]), bytes.fromhex(case["peer_public"]))


class TestKeyExchange:
    @pytest.mark.parametrize("case", by_name(EXCHANGE["pila"]))
    def test_pila(self, case: dict[str, Any]) -> None:
        frame = bytes.fromhex(case["frame"])
        owner = next(who for who in (IDENTITIES["A"], IDENTITIES["B"]) if who["x25519_public"] in case["frame"])
        identity = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(owner["ed25519_seed"]))
        public = bytes.fromhex(owner["x25519_public"])
        assert len(frame) == case["length"]
        assert frames.signed_bytes(case["node_id"], public).hex() == case["signed_bytes"]
        assert frames.encode_pila(case["node_id"], public, identity) == frame
        decoded = frames.decode_pila_untrusted(frame, frames.public_bytes(identity))
        assert (decoded.node, decoded.x25519) == (case["node_id"], public)

    @pytest.mark.parametrize("case", by_name(EXCHANGE["pila_reject"]))
    def test_pila_rejected(self, case: dict[str, Any]) -> None:
        frame = bytes.fromhex(case["frame"])
        registered = REGISTERED.get(int.from_bytes(frame[4:8], "big"), b"")
        with pytest.raises(frames.FrameError):
            frames.decode_pila_untrusted(frame, registered)

    @pytest.mark.parametrize("case", by_name(EXCHANGE["pila_accept_variants"]))
    def test_pila_variants(self, case: dict[str, Any]) -> None:
        frame = bytes.fromhex(case["frame"])
        assert frames.decode_pila_untrusted(frame, REGISTERED[3]) == frames.decode_pila_untrusted(
            frame[:136], REGISTERED[3]
        )

    @pytest.mark.parametrize("case", by_name(EXCHANGE["pilk"]))
    def test_pilk(self, case: dict[str, Any]) -> None:
        who = IDENTITIES[case["name"]]
        public = bytes.fromhex(who["x25519_public"])
        frame = frames.encode_pilk(who["node_id"], public)
        assert frame.hex() == case["frame"]
        assert frames.decode_pilk_untrusted(frame) == frames.KeyExchange(who["node_id"], public)

    @pytest.mark.parametrize("case", by_name(EXCHANGE["pilk_reject"]))
    def test_pilk_rejected(self, case: dict[str, Any]) -> None:
        with pytest.raises(frames.FrameError):
            frames.decode_pilk_untrusted(bytes.fromhex(case["frame"]))


class TestEncrypted:
    @pytest.mark.parametrize("case", by_name(ENCRYPTED["frames"]))
    def test_seals_and_opens(self, case: dict[str, Any]) -> None:
        frame, plaintext = bytes.fromhex(case["frame"]), bytes.fromhex(case["plaintext"])
        prefix = bytes.fromhex(case["nonce_prefix"])
        assert frames.seal(KEY, case["sender"], prefix, case["counter"], plaintext) == frame
        assert len(frame) == case["length"]
        assert frame[8:20].hex() == case["nonce"]
        assert frame[20:].hex() == case["ciphertext_and_tag"]
        opened = frames.open_untrusted(KEY, frame)
        assert opened == frames.Opened(case["sender"], prefix, case["counter"], plaintext)
        assert packet.decode_untrusted(plaintext).source.node == case["sender"]

    @pytest.mark.parametrize("case", by_name(ENCRYPTED["accept_variants"]))
    def test_variants_open(self, case: dict[str, Any]) -> None:
        opened = frames.open_untrusted(KEY, bytes.fromhex(case["frame"]))
        assert opened.sender == 2
        packet.decode_untrusted(opened.plaintext)

    @pytest.mark.parametrize("case", by_name(ENCRYPTED["reject"]))
    def test_rejected_at_the_right_step(self, case: dict[str, Any]) -> None:
        frame, reaction = bytes.fromhex(case["frame"]), case["reaction"]
        if not reaction.startswith("decrypts"):
            with pytest.raises(frames.FrameError, match="authentication" if "authentication" in reaction else "PILS"):
                frames.open_untrusted(KEY, frame)
            return
        opened = frames.open_untrusted(KEY, frame)
        if "src_spoofed" in reaction:
            assert packet.decode_untrusted(opened.plaintext).source.node != opened.sender
        else:
            with pytest.raises(packet.PacketError):
                packet.decode_untrusted(opened.plaintext)


class TestPlaintext:
    @pytest.mark.parametrize("case", by_name(PLAINTEXT["frames"]))
    def test_frames(self, case: dict[str, Any]) -> None:
        frame = bytes.fromhex(case["frame"])
        inner = frames.decode_pilt_untrusted(frame)
        if case.get("plaintext_node") == "silent drop":
            with pytest.raises(packet.PacketError):
                packet.decode_untrusted(inner)
        else:
            assert frames.encode_pilt(packet.decode_untrusted(inner).encode()) == frame

    def test_other_magic(self) -> None:
        with pytest.raises(frames.FrameError):
            frames.decode_pilt_untrusted(b"PILX" + bytes(34))


class TestReplay:
    @pytest.mark.parametrize("case", by_name(REPLAY["sequences_ignoring_prefix_as_1_18_0"]))
    def test_window(self, case: dict[str, Any]) -> None:
        window = replay.Window(REPLAY["window"])
        assert [window.check(int(counter)) for counter in case["counters"]] == case["verdicts"]
        assert len(window.seen) <= window.size

    @pytest.mark.parametrize("case", by_name(REPLAY["epoch_cases"]))
    def test_epochs(self, case: dict[str, Any]) -> None:
        single, epochs = replay.Window(), replay.EpochWindows()
        seen = [(bytes.fromhex(prefix), counter) for prefix, counter in case["frames"]]
        assert [single.check(counter) for _, counter in seen] == case["verdict_1_18_0"]
        assert [epochs.check(*frame) for frame in seen] == case["verdict_with_epochs"]

    def test_counter_zero_quirk(self) -> None:
        window = replay.Window()
        assert [window.check(counter) for counter in (0, 0, 1, 0, 1)] == [replay.ACCEPT] * 3 + [replay.REPLAY] * 2

    def test_epochs_are_counted_for_life(self) -> None:
        windows = replay.EpochWindows(max_epochs=2)
        verdicts = [windows.check(prefix, 1) for prefix in (b"aaaa", b"bbbb", b"cccc", b"aaaa")]
        assert verdicts == [replay.ACCEPT, replay.NEW_EPOCH, replay.TOO_MANY_EPOCHS, replay.REPLAY]


class TestAddress:
    @pytest.mark.parametrize("case", ADDRESS["valid"], ids=lambda case: case["text"])
    def test_valid(self, case: dict[str, Any]) -> None:
        address = Address(case["network"], case["node"])
        assert str(address) == case["text"]
        assert address.pack().hex() == case["bytes"]
        assert (address.is_zero, address.is_broadcast) == (case["is_zero"], case["is_broadcast"])
        assert addr.parse_untrusted(case["text"]) == addr.unpack_untrusted(address.pack()) == address

    @pytest.mark.parametrize("case", ADDRESS["parse_accept"], ids=lambda case: case["text"])
    def test_accepted_text(self, case: dict[str, Any]) -> None:
        address = addr.parse_untrusted(case["text"])
        assert (address.pack().hex(), str(address)) == (case["bytes"], case["canonical"])

    @pytest.mark.parametrize("case", ADDRESS["parse_reject"], ids=lambda case: case["why"])
    def test_rejected_text(self, case: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            addr.parse_untrusted(case["text"])

    @pytest.mark.parametrize("case", ADDRESS["socket_accept"], ids=lambda case: case["text"])
    def test_accepted_socket(self, case: dict[str, Any]) -> None:
        address, port = addr.parse_socket_untrusted(case["text"])
        assert (address.pack().hex(), port) == (case["bytes"], case["port"])

    @pytest.mark.parametrize("case", ADDRESS["socket_reject"], ids=lambda case: case["why"])
    def test_rejected_socket(self, case: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            addr.parse_socket_untrusted(case["text"])

    @pytest.mark.parametrize("case", ADDRESS["short_bytes"], ids=lambda case: case["bytes"] or "empty")
    def test_short_bytes(self, case: dict[str, Any]) -> None:
        assert str(addr.unpack_untrusted(bytes.fromhex(case["bytes"]))) == case["result"]


class TestMisc:
    @pytest.mark.parametrize("case", MISC["redacted_id"], ids=lambda case: case["input"])
    def test_redacted(self, case: dict[str, Any]) -> None:
        assert addr.redacted(case["input"]) == case["output"]

    @pytest.mark.parametrize("case", MISC["beacon_pick"], ids=lambda case: case["key"][:8])
    def test_beacon_pick(self, case: dict[str, Any]) -> None:
        key = bytes.fromhex(case["key"])
        assert beacon.fnv1a32(key) == case["fnv1a32"]
        assert {count: beacon.pick(key, int(count)) for count in case["index_of"]} == case["index_of"]

    @pytest.mark.parametrize("datagram", MISC["ignored_datagrams"], ids=lambda datagram: datagram[:16] or "empty")
    def test_ignored_datagrams(self, datagram: str) -> None:
        data = bytes.fromhex(datagram)
        assert not beacon.is_beacon_message_untrusted(data)
        for decode in (frames.decode_pilk_untrusted, frames.decode_pilt_untrusted):
            with pytest.raises(frames.FrameError):
                decode(data)
        with pytest.raises(frames.FrameError):
            frames.decode_pila_untrusted(data, bytes(32))
        with pytest.raises(frames.FrameError):
            frames.open_untrusted(KEY, data)


class TestBeacon:
    def test_layouts(self) -> None:
        a = IDENTITIES["A"]
        pila, pilk = bytes.fromhex(EXCHANGE["pila"][0]["frame"]), bytes.fromhex(EXCHANGE["pilk"][0]["frame"])
        pils = bytes.fromhex(ENCRYPTED["frames"][0]["frame"])
        target = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(IDENTITIES["B"]["ed25519_seed"]))
        expiry = 2_000_000_000
        grant = expiry.to_bytes(8, "big") + target.sign(beacon.punch_grant_text(2, 3, expiry))
        mapped = bytes([beacon.PUNCH_COMMAND, 16]) + bytes(10) + b"\xff\xff" + bytes([203, 0, 113, 7]) + b"\x9c\x40"
        built = {
            "discover_before_registration": beacon.discover(0),
            "discover": beacon.discover(2),
            "discover_with_public_key": beacon.discover(2, bytes.fromhex(a["ed25519_public"])),
            "discover_reply_v4": beacon.endpoint_message(beacon.DISCOVER_REPLY, "203.0.113.7", 40000),
            "punch_request": beacon.punch_request(2, 3),
            "punch_command_v4": beacon.endpoint_message(beacon.PUNCH_COMMAND, "203.0.113.7", 40000),
            "punch_command_v6": beacon.endpoint_message(beacon.PUNCH_COMMAND, "2001:db8::1", 40000),
            "punch_command_v4_mapped": mapped,
            "notify_handshake": bytes([beacon.NOTIFY, 1]),
            "notify_handshake_extended": bytes([beacon.NOTIFY, 1, 0xFF, 0xFF]),
            "relay_PILA_A_to_B": beacon.relay(2, 3, pila),
            "relay_deliver_PILA_A_to_B": beacon.relay_deliver(2, pila),
            "relay_deliver_PILS_A_to_B": beacon.relay_deliver(2, pils),
            "relay_PILK_A_to_B": beacon.relay(2, 3, pilk),
            "beacon_sync": bytes.fromhex("070000000700020000000200000003"),
            "discover_ex": bytes([beacon.DISCOVER_EX]) + beacon.discover(2)[1:],
            "pilp_sent_by_1_18": frames.PILP,
            "pilp_draft_form": frames.PILP + bytes([0, 0, 0, 2]),
            "punch_request_with_grant": beacon.punch_request(2, 3, grant),
        }
        assert {name: frame.hex() for name, frame in built.items()} == {
            case["name"]: case["frame"] for case in BEACON["frames"]
        }

    @pytest.mark.parametrize("case", by_name(BEACON["frames"]))
    def test_decoding(self, case: dict[str, Any]) -> None:
        message, name = bytes.fromhex(case["frame"]), case["name"]
        assert beacon.is_beacon_message_untrusted(message) is not name.startswith("pilp")
        if name.startswith(("discover_reply", "punch_command")):
            host = "2001:db8::1" if name.endswith("v6") else "203.0.113.7"
            assert beacon.decode_endpoint_untrusted(message) == (host, 40000)
            assert beacon.decode_endpoint_untrusted(message + b"x") == (host, 40000)
        if name.startswith("relay_deliver"):
            assert beacon.decode_relay_deliver_untrusted(message) == (2, message[5:])
        assert beacon.is_handshake_notice_untrusted(message) is name.startswith("notify")

    @pytest.mark.parametrize("case", by_name(BEACON["node_ignores"]))
    def test_ignored(self, case: dict[str, Any]) -> None:
        message = bytes.fromhex(case["frame"])
        if case["name"].startswith("punch"):
            with pytest.raises(beacon.BeaconError):
                beacon.decode_endpoint_untrusted(message)
        with pytest.raises(beacon.BeaconError):
            beacon.decode_relay_deliver_untrusted(message)
        assert not beacon.is_handshake_notice_untrusted(message)


FLAG_BITS = {"SYN": packet.SYN, "ACK": packet.ACK, "FIN": packet.FIN, "RST": packet.RST}
STREAM_FRAMES = [
    pytest.param(frame, id=f"{exchange['name']}-{index}")
    for exchange in STREAMS["exchanges"]
    for index, frame in enumerate(exchange["frames"])
]


class TestStreams:
    @pytest.mark.parametrize("case", STREAM_FRAMES)
    def test_exchange_frames(self, case: dict[str, Any]) -> None:
        decoded = packet.decode_untrusted(frames.decode_pilt_untrusted(bytes.fromhex(case["hex"])))
        flags = sum(FLAG_BITS[flag] for flag in case["flags"].split("|") if flag in FLAG_BITS)
        assert (decoded.flags, decoded.protocol, len(decoded.payload)) == (flags, case["protocol"], case["payload_len"])
        assert f"{decoded.source.network}:{decoded.source.node}" == case["src"]
        assert f"{decoded.destination.network}:{decoded.destination.node}" == case["dst"]
        assert (decoded.source_port, decoded.destination_port) == (case["src_port"], case["dst_port"])
        assert (decoded.seq, decoded.ack, decoded.window) == (case["seq"], case["ack"], case["window"])
        if "sack" in case:
            assert sack.decode_untrusted(decoded.payload) == [tuple(block) for block in case["sack"]]

    @pytest.mark.parametrize("case", by_name(STREAMS["derived_frames"]))
    def test_derived_frames(self, case: dict[str, Any]) -> None:
        inner = frames.decode_pilt_untrusted(bytes.fromhex(case["hex"]))
        assert packet.decode_untrusted(inner).encode() == inner

    @pytest.mark.parametrize("case", STREAMS["sack_payloads"])
    def test_sack_payloads(self, case: dict[str, Any]) -> None:
        blocks = [tuple(block) for block in case["blocks"]]
        payload = sack.encode(blocks)
        assert payload.hex() == case["hex"]
        assert sack.decode_untrusted(payload) == sack.decode_untrusted(payload, strict=True) == blocks
        assert sack.decode_untrusted(payload + b"x") == blocks
        assert sack.decode_untrusted(payload + b"x", strict=True) is None

    @pytest.mark.parametrize("case", STREAMS["sack_decode_cases"])
    def test_told_from_data(self, case: dict[str, Any]) -> None:
        payload = bytes.fromhex(case["hex"])
        assert (sack.decode_untrusted(payload) is not None) is case["is_sack_1_18_0"]
        assert sack.decode_untrusted(payload, strict=True) is None

    @pytest.mark.parametrize("count", [0, 5])
    def test_sack_block_count(self, count: int) -> None:
        with pytest.raises(ValueError):
            sack.encode([(1, 2)] * count)
