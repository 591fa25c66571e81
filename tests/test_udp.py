"""The datagram socket (L2): addresses, batches, offloads, both loops, and each kernel trap that can be provoked."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import itertools
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator

import pytest
import uvloop

from pilot._fast.errors import InvalidValueError
from pilot._fast.interfaces import lan_addresses, local_address_towards
from pilot._fast.port import FrameSink
from pilot._fast.recorder import Recorder, congested, transmit
from pilot._fast.udp import UdpPort

linux = pytest.mark.skipif(sys.platform != "linux", reason="a Linux socket option")
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
CLONE_NEWNET = 0x40000000
SO_NO_CHECK = 11
SO_TIMESTAMPNS = 35
IP_PKTINFO = 8
PENDING_LIMIT = 1 << 20

OpenPort = Callable[..., UdpPort]


@pytest.fixture
def open_port() -> Iterator[OpenPort]:
    """`UdpPort(...)` on 127.0.0.1 unless told otherwise, closed at the end."""
    ports: list[UdpPort] = []

    def opener(**settings: object) -> UdpPort:
        if ":" in str(settings.get("host")) and not ipv6_exists():
            pytest.skip("no IPv6 here")
        port = UdpPort(**{"host": "127.0.0.1", **settings})
        ports.append(port)
        return port

    yield opener
    for port in ports:
        port.close()


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network namespace of this thread's own, with loopback at MTU 1500."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux")
    if shutil.which("ip") is None:
        pytest.skip("needs the program `ip` (package iproute2)")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            run("ip link set lo mtu 1500 up")
            yield
        finally:
            assert libc.setns(home, 0) == 0
    finally:
        os.close(home)


def ipv6_exists() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def slow_loopback(*, limit: str) -> None:
    """Let loopback carry 800 kbit/s with a queue of `limit`: what is queued stays charged to its sender."""
    try:
        run(f"tc qdisc add dev lo root tbf rate 800kbit burst 4k limit {limit}")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tc with tbf")


def socket_of(port: UdpPort) -> socket.socket:
    """The port's socket, duplicated: to set its options and look at its error queue."""
    return socket.socket(fileno=os.dup(port.socket_fileno()))


def received(port: UdpPort) -> Recorder:
    """All that waits in the port, in as many callbacks as it takes: a slow machine may need several."""
    sink = Recorder()
    port.attach(sink)
    before = -1
    while len(sink.datagrams) > before:
        before = len(sink.datagrams)
        port.on_readable()
    return sink


def payload(length: int) -> bytes:
    return bytes(i * 31 % 251 for i in range(length))


def cut(data: bytes, segment: int) -> list[bytes]:
    return [data[i : i + segment] for i in range(0, len(data), segment)]


def refused_by(port: UdpPort) -> tuple[str, int]:
    """Provoke an ICMP report: send to an address where nobody is any more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address = gone.getsockname()
    assert transmit(port, b"anybody?", 100, address) == 0
    return address


# --- opening and closing ---


def test_any_address_is_one_dual_stack_socket(open_port: OpenPort) -> None:
    port = open_port(host="")
    number = port.address[1]
    assert port.address[0] in ("::", "0.0.0.0")
    assert number > 0
    sink = Recorder()
    port.attach(sink)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
        four.bind(("127.0.0.1", 0))
        four.settimeout(5)
        four.sendto(b"four", ("127.0.0.1", number))
        port.on_readable()
        assert sink.datagrams[0][:2] == (b"four", four.getsockname())  # not ::ffff:127.0.0.1
        assert transmit(port, b"back", 100, four.getsockname()) == 0
        assert four.recv(100) == b"back"
    if ipv6_exists():
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
            six.bind(("::1", 0))
            six.settimeout(5)
            six.sendto(b"six", ("::1", number))
            port.on_readable()
            assert sink.datagrams[1][:2] == (b"six", six.getsockname()[:2])
            assert transmit(port, b"back", 100, six.getsockname()[:2]) == 0
            assert six.recv(100) == b"back"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_a_literal_binds_that_address(open_port: OpenPort, host: str) -> None:
    port = open_port(host=host)
    assert port.address == (host, port.address[1])


def test_a_mapped_literal_is_ipv4(open_port: OpenPort) -> None:
    assert open_port(host="::ffff:127.0.0.1").address[0] == "127.0.0.1"


def test_a_socket_of_one_family_says_it_cannot_reach_the_other(open_port: OpenPort) -> None:
    assert transmit(open_port(), b"x", 1, ("::1", 9)) == -errno.EAFNOSUPPORT
    unreachable = (-errno.ENETUNREACH, -errno.EHOSTUNREACH, -errno.EINVAL, -errno.EADDRNOTAVAIL)  # systems differ
    assert transmit(open_port(host="::1"), b"x", 1, ("127.0.0.1", 9)) in unreachable


def test_an_address_in_use_is_named(open_port: OpenPort) -> None:
    taken = open_port().address[1]
    with pytest.raises(OSError, match=rf"UDP port {taken} of 127\.0\.0\.1 is in use.*choose another") as caught:
        open_port(port=taken)
    assert caught.value.errno == errno.EADDRINUSE


def test_an_address_of_another_machine_is_named(open_port: OpenPort) -> None:
    with pytest.raises(InvalidValueError, match=r"'203\.0\.113\.7' is not an address of this machine"):
        open_port(host="203.0.113.7")


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "localhost"},
        {"port": -1},
        {"port": 65536},
        {"buffer_bytes": 0},
        {"buffer_bytes": 1 << 31},
    ],
)
def test_values_that_cannot_be_are_refused(open_port: OpenPort, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidValueError, match=str(next(iter(wrong.values())))):
        open_port(**wrong)


def test_close_is_idempotent_and_leaves_nothing_usable(open_port: OpenPort) -> None:
    port = open_port()
    address = port.address
    descriptor = port.socket_fileno()
    assert os.get_inheritable(descriptor) is False
    assert os.get_blocking(descriptor) is False
    port.close()
    port.close()
    assert port.closed
    assert (port.fileno(), port.socket_fileno()) == (-1, -1)
    assert port.address == address
    assert transmit(port, b"x", 1, ("127.0.0.1", 9)) == -errno.EBADF
    port.on_readable()
    port.on_writable()
    assert port.stats().send_calls == 0
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_port_in_a_cycle_with_its_sink_is_collected() -> None:
    port = UdpPort(host="127.0.0.1")
    sink = Recorder()
    sink.hook = lambda *_, port=port: port
    port.attach(sink)
    gone = weakref.ref(port)
    port.close()
    del port, sink
    gc.collect()
    assert gone() is None


def test_a_forgotten_port_is_reported() -> None:
    port = UdpPort(host="127.0.0.1")
    with pytest.warns(ResourceWarning, match="unclosed"):
        del port


def test_buffers_are_asked_for_and_the_grant_is_told(open_port: OpenPort) -> None:
    small = open_port(buffer_bytes=65536)
    with socket_of(small) as sock:
        assert small.receive_buffer_bytes == sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert small.receive_buffer_bytes >= 65536
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 65536
    assert open_port().receive_buffer_bytes > small.receive_buffer_bytes


@linux
def test_the_options_are_set(open_port: OpenPort) -> None:
    port = open_port(host="")
    with socket_of(port) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, 10) == 3  # IP_MTU_DISCOVER: PROBE
        assert sock.getsockopt(socket.IPPROTO_IP, 11) == 1  # IP_RECVERR
        assert sock.getsockopt(socket.SOL_SOCKET, 40) == 1  # SO_RXQ_OVFL
        assert sock.getsockopt(17, 103) == 0  # UDP_SEGMENT set back after the probe
        assert sock.getsockopt(17, 104) == port.offloads.gro
        if sock.family == socket.AF_INET6:
            assert sock.getsockopt(socket.IPPROTO_IPV6, 23) == 3
            assert sock.getsockopt(socket.IPPROTO_IPV6, 25) == 1
    assert open_port(gso=False, gro=False, recvmmsg=False).offloads == (False, False, False)


# --- batches and offloads ---


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize(("gro", "recvmmsg"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    ("length", "segment"),
    [(1, 1), (1200, 1200), (1200, 5000), (2401, 1200), (64 * 1200, 1200), (100_000, 1200), (500, 3), (90_000, 30_000),
     (130_000, 40_000), (196_464, 65_488), (0, 0), (65_488, 65_488), (65_508, 32_754)],
)  # fmt: skip
def test_bursts_arrive_cut_and_in_order(
    open_port: OpenPort, gso: bool, gro: bool, recvmmsg: bool, host: str, length: int, segment: int
) -> None:
    if sys.platform != "linux" and segment > 9216:
        pytest.skip("over the system's limit for a datagram")
    sender = open_port(host=host, gso=gso)
    receiver = open_port(host=host, gro=gro, recvmmsg=recvmmsg)
    data = payload(length)
    assert transmit(sender, data, segment, receiver.address) == 0
    sink = Recorder()
    receiver.attach(sink)
    expected = cut(data, segment) if length else [b""]
    for _ in range(20):
        receiver.on_readable()
        if len(sink.datagrams) == len(expected):
            break
    assert [datagram for datagram, _, _ in sink.datagrams] == expected
    assert {source for _, source, _ in sink.datagrams} == {sender.address}
    out, in_ = sender.stats(), receiver.stats()
    assert (out.datagrams_out, out.bytes_out) == (len(expected), length)
    assert (in_.datagrams_in, in_.bytes_in) == (len(expected), length)
    assert in_.turns == len(sink.batches)


@linux
def test_a_burst_is_one_call_and_one_buffer_with_the_offloads(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port()
    if sender.offloads != (True, True, True):
        pytest.skip("a kernel without UDP_SEGMENT or UDP_GRO")
    assert transmit(sender, payload(54 * 1200), 1200, receiver.address) == 0
    sink = received(receiver)
    assert len(sink.datagrams) == 54
    assert len(sink.batches) == 1
    out, in_ = sender.stats(), receiver.stats()
    assert (out.send_calls, out.batches_out, out.segments_per_batch_out) == (1, 1, 54.0)
    assert (in_.turns, in_.batches_in, in_.segments_per_batch_in) == (1, 1, 54.0)
    # The second callback found nothing and looked at the error queue.
    assert in_.receive_calls == 1 + 2


@linux
def test_a_burst_is_one_call_without_the_offloads(open_port: OpenPort) -> None:
    sender, receiver = open_port(gso=False), open_port(gro=False)
    assert transmit(sender, payload(54 * 1200), 1200, receiver.address) == 0
    assert sender.stats().send_calls == 1
    assert len(received(receiver).datagrams) == 54
    in_ = receiver.stats()
    assert (in_.receive_calls, in_.batches_in) == (14 + 2, 54)  # four datagrams a call


@linux
def test_without_recvmmsg_each_buffer_is_a_call(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port(gro=False, recvmmsg=False)
    assert transmit(sender, payload(54 * 1200), 1200, receiver.address) == 0
    sink = received(receiver)
    assert [datagram for datagram, _, _ in sink.datagrams] == cut(payload(54 * 1200), 1200)
    in_ = receiver.stats()
    # Twice what is left over is found by being refused, and then the error queue is looked at.
    assert (in_.receive_calls, in_.batches_in, len(sink.batches)) == (54 + 2 + 2, 54, 1)


def test_now_is_taken_once_per_callback_from_the_clock_given(open_port: OpenPort) -> None:
    ticks = itertools.count(17.5)
    sender = open_port()
    receiver = open_port(gro=False, clock=lambda: next(ticks))
    transmit(sender, payload(30), 3, receiver.address)
    sink = received(receiver)
    stamps = [now for _, _, now in sink.datagrams]
    assert stamps[0] == 17.5
    assert sorted(set(stamps)) == sink.batches


def test_a_callback_with_nothing_to_deliver_ends_no_batch(open_port: OpenPort) -> None:
    assert received(open_port()).batches == []


def test_one_callback_is_bounded_and_the_rest_comes_later(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port(gro=False)
    sink = Recorder()
    receiver.attach(sink)
    for _ in range(8):
        assert transmit(sender, payload(64 * 8), 8, receiver.address) == 0
    receiver.on_readable()
    assert 0 < len(sink.datagrams) <= 64 * 4  # receive calls a turn, buffers a call
    for _ in range(200):
        receiver.on_readable()
    assert len(sink.datagrams) == 512


def test_without_a_sink_datagrams_are_read_and_forgotten(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port()
    transmit(sender, b"lost", 100, receiver.address)
    receiver.on_readable()
    assert receiver.stats().datagrams_in == 1
    assert received(receiver).datagrams == []


def test_wrong_arguments_are_refused_with_an_errno(open_port: OpenPort) -> None:
    port = open_port()
    assert transmit(port, b"x", 1, None) == -errno.EDESTADDRREQ
    assert transmit(port, b"x", 0, ("127.0.0.1", 9)) == -errno.EINVAL
    assert port.stats().send_calls == 0


def test_send_datagram_for_python_callers(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port()
    sender.send_datagram(b"one", receiver.address)
    sender.send_datagram(b"", receiver.address)
    assert [datagram for datagram, _, _ in received(receiver).datagrams] == [b"one", b""]
    with pytest.raises(OSError, match=r"65508 bytes to .*EMSGSIZE"):
        sender.send_datagram(bytes(65_508), receiver.address)


# --- sinks that do more than listen ---


def test_a_sink_may_send_from_inside(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port()
    transmit(sender, payload(5000), 1000, receiver.address)
    sink = Recorder(lambda data, source, _: transmit(receiver, data[:7], 7, source))
    receiver.attach(sink)
    receiver.on_readable()
    assert [datagram for datagram, _, _ in received(sender).datagrams] == [d[:7] for d in cut(payload(5000), 1000)]


@pytest.mark.parametrize("gro", [True, False])
def test_a_sink_may_close_the_port_from_inside(open_port: OpenPort, gro: bool) -> None:
    sender, receiver = open_port(), open_port(gro=gro)
    transmit(sender, payload(5000), 1000, receiver.address)
    sink = Recorder(lambda *_: receiver.close())
    receiver.attach(sink)
    receiver.on_readable()
    assert len(sink.datagrams) == 1
    assert len(sink.batches) == 1
    assert receiver.closed


def test_a_callback_inside_the_callback_does_nothing(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port(gro=False)
    transmit(sender, payload(5000), 1000, receiver.address)
    sink = Recorder(lambda *_: receiver.on_readable())
    receiver.attach(sink)
    while len(sink.datagrams) < 5:
        receiver.on_readable()
    assert [datagram for datagram, _, _ in sink.datagrams] == cut(payload(5000), 1000)


def test_a_sink_may_be_replaced_from_inside(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port()
    transmit(sender, payload(5000), 1000, receiver.address)
    later = Recorder()
    # Nothing but the port refers to the first sink, and the port lets go of it in the middle of its batch.
    seen: list[bytes] = []

    def replace(data: bytes, *_: object) -> None:
        seen.append(data)
        receiver.attach(later)

    receiver.attach(Recorder(replace))
    receiver.on_readable()
    assert seen == cut(payload(5000), 1000)
    transmit(sender, b"next", 100, receiver.address)
    receiver.on_readable()
    assert later.datagrams[0][0] == b"next"


def test_a_plain_sink_ignores_everything(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port()
    receiver.attach(FrameSink())
    transmit(sender, payload(5000), 1000, receiver.address)
    receiver.on_readable()
    assert receiver.stats().datagrams_in == 5


# --- event loops ---


@pytest.mark.parametrize("loop_name", LOOPS)
def test_echo_on_a_loop(open_port: OpenPort, loop_name: str) -> None:
    client, server = open_port(), open_port(host="")
    server.attach(Recorder(lambda data, source, _: transmit(server, data, 2000, source)))
    answers = Recorder()
    client.attach(answers)
    target = ("127.0.0.1", server.address[1])

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        answers.hook = lambda *_: done.set() if len(answers.datagrams) == 300 else None
        for port in (client, server):
            loop.add_reader(port.fileno(), port.on_readable)
        for _ in range(10):
            assert transmit(client, payload(30 * 1000), 1000, target) == 0
            await asyncio.sleep(0)
        await asyncio.wait_for(done.wait(), 20)
        for port in (client, server):
            loop.remove_reader(port.fileno())

    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        runner.run(main())
    assert [datagram for datagram, _, _ in answers.datagrams] == cut(payload(30 * 1000), 1000) * 10


@pytest.mark.parametrize("loop_name", LOOPS)
def test_a_refused_datagram_does_not_deafen_the_port(open_port: OpenPort, loop_name: str) -> None:
    """A report on the error queue polls as POLLERR, upon which libuv drops a watcher for good."""
    port, peer = open_port(host=""), open_port()
    target = ("127.0.0.1", port.address[1])

    async def main() -> None:
        loop = asyncio.get_running_loop()
        sink = Recorder()
        port.attach(sink)
        turns = 0

        def on_readable() -> None:
            nonlocal turns
            turns += 1
            port.on_readable()

        loop.add_reader(port.fileno(), on_readable)
        for round_ in range(3):
            refused_by(port)
            await asyncio.sleep(0.05)
            arrived = asyncio.Event()
            sink.hook = lambda *_, arrived=arrived: arrived.set()
            assert transmit(peer, b"still there?", 100, target) == 0
            await asyncio.wait_for(arrived.wait(), 10)
            assert len(sink.datagrams) == round_ + 1
        loop.remove_reader(port.fileno())
        assert turns < 20  # the queue was emptied: the loop does not spin on it

    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop_name", LOOPS)
def test_held_bursts_go_out_on_a_loop(open_port: OpenPort, namespace: None, loop_name: str) -> None:
    slow_loopback(limit="10mb")
    sender, receiver = open_port(host="127.0.0.1", buffer_bytes=1), open_port()
    sink = Recorder()
    receiver.attach(sink)
    sent = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        drained, arrived = asyncio.Event(), asyncio.Event()
        sender.on_congested = lambda: loop.add_writer(sender.fileno(), sender.on_writable)

        def on_drained() -> None:
            loop.remove_writer(sender.fileno())
            drained.set()

        sender.on_drained = on_drained
        sink.hook = lambda *_: arrived.set() if len(sink.datagrams) == len(sent) else None
        for port in (sender, receiver):
            loop.add_reader(port.fileno(), port.on_readable)
        for number in range(30):
            datagram = bytes([number]) * 1000
            sent.append(datagram)
            assert transmit(sender, datagram, 1000, receiver.address) in (0, 1)
        assert congested(sender)
        await asyncio.wait_for(drained.wait(), 20)
        assert not congested(sender)
        await asyncio.wait_for(arrived.wait(), 20)
        for port in (sender, receiver):
            loop.remove_reader(port.fileno())

    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        runner.run(main())
    assert [datagram for datagram, _, _ in sink.datagrams] == sent
    assert sender.stats().dropped == 0


# --- kernel traps ---


@linux
def test_a_report_about_one_peer_does_not_fail_a_send_to_another(open_port: OpenPort) -> None:
    port, peer = open_port(), open_port()
    refused_by(port)
    assert transmit(port, b"hello", 100, peer.address) == 0
    assert received(peer).datagrams[0][0] == b"hello"
    stats = port.stats()
    assert (stats.datagrams_out, stats.send_calls) == (2, 3)
    assert stats.send_errors == {}
    assert port.offloads.gso == open_port().offloads.gso


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_the_error_queue_is_emptied_and_counted(open_port: OpenPort, host: str) -> None:
    port = open_port(host=host)
    for _ in range(3):
        refused_by(port)
    port.on_readable()
    assert port.stats().reports == {"ECONNREFUSED": 3}
    with socket_of(port) as sock, pytest.raises(BlockingIOError):
        sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    assert port.take_mtu_reports() == []


@linux
def test_a_flood_of_reports_is_read_in_turns_and_hides_no_datagram(open_port: OpenPort) -> None:
    port, peer = open_port(), open_port()
    for _ in range(300):
        refused_by(port)
    transmit(peer, b"behind them", 100, port.address)
    sink = received(port)
    for _ in range(10):
        port.on_readable()
    assert [datagram for datagram, _, _ in sink.datagrams] == [b"behind them"]
    assert port.stats().reports["ECONNREFUSED"] == 300


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("gso", [True, False])
def test_a_datagram_over_the_mtu_is_too_big_and_gso_stays(
    open_port: OpenPort, namespace: None, host: str, gso: bool
) -> None:
    headers = 28 if host == "127.0.0.1" else 48
    sender, receiver = open_port(host=host, gso=gso), open_port(host=host)
    for length in (1501 - headers, 4096, 10 * 4096):
        assert transmit(sender, payload(length), 4096, receiver.address) == -errno.EMSGSIZE
    offloads = sender.offloads
    assert offloads.gso == open_port(gso=gso).offloads.gso
    assert sender.stats().gso_fallbacks == 0
    assert sender.stats().send_errors == {"EMSGSIZE": 3}
    fits = 1500 - headers
    assert transmit(sender, payload(40 * fits), fits, receiver.address) == 0
    assert [datagram for datagram, _, _ in received(receiver).datagrams] == cut(payload(40 * fits), fits)
    sender.on_readable()
    assert sender.stats().too_big > 0
    reports = sender.take_mtu_reports()
    assert {mtu for _, mtu in reports} == {1500}
    assert len(reports) <= 32
    assert sender.take_mtu_reports() == []


@linux
def test_gso_refused_by_the_kernel_is_switched_off_and_the_burst_goes_out(
    open_port: OpenPort, caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = open_port(), open_port()
    if not sender.offloads.gso:
        pytest.skip("a kernel without UDP_SEGMENT")
    with socket_of(sender) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)  # the kernel segments no datagram without a checksum: EINVAL
    data = payload(150 * 1000)
    assert transmit(sender, data, 1000, receiver.address) == 0
    assert [datagram for datagram, _, _ in received(receiver).datagrams] == cut(data, 1000)
    assert sender.offloads.gso is False
    assert sender.stats().gso_fallbacks == 1
    assert sender.stats().send_errors == {}
    assert transmit(sender, data, 1000, receiver.address) == 0
    assert sender.stats().gso_fallbacks == 1
    with caplog.at_level(logging.WARNING, "pilot.udp"):
        sender.on_readable()
        sender.on_readable()
    assert [record.getMessage() for record in caplog.records] == [
        f"UDP segmentation offload is off on {sender.address}: the kernel refused a burst (EINVAL) that went out uncut"
    ]


@linux
def test_a_buffer_whose_control_message_was_cut_is_dropped(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port()
    with socket_of(receiver) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        transmit(sender, payload(10 * 1000), 1000, receiver.address)
        assert received(receiver).datagrams == []
        assert receiver.stats().truncated > 0
        assert receiver.stats().datagrams_in == 0
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 0)
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 0)
    transmit(sender, payload(10 * 1000), 1000, receiver.address)
    assert len(received(receiver).datagrams) == 10


@linux
def test_datagrams_the_kernel_dropped_are_counted(open_port: OpenPort) -> None:
    sender, receiver = open_port(), open_port(buffer_bytes=1, gro=False)
    for _ in range(5):
        transmit(sender, payload(20 * 1000), 1000, receiver.address)
    delivered = len(received(receiver).datagrams)
    assert delivered < 100
    for _ in range(2):
        transmit(sender, b"carries the count", 100, receiver.address)
        delivered += len(received(receiver).datagrams)
    assert receiver.stats().overflow == 102 - delivered


def test_a_datagram_from_port_0_is_not_delivered(open_port: OpenPort) -> None:
    receiver = open_port()
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("needs raw sockets")
    with raw:
        header = b"\x00\x00" + receiver.address[1].to_bytes(2, "big") + (8 + 5).to_bytes(2, "big") + b"\x00\x00"
        raw.sendto(header + b"hello", ("127.0.0.1", 0))
    assert received(receiver).datagrams == []
    assert receiver.stats().unanswerable == 1


# --- full send buffer ---


def test_a_full_send_buffer_holds_bursts_back_in_order(open_port: OpenPort, namespace: None) -> None:
    slow_loopback(limit="10mb")
    sender, receiver = open_port(buffer_bytes=1), open_port()
    calls: list[str] = []
    sender.on_congested = lambda: calls.append("congested")
    sender.on_drained = lambda: calls.append("drained")
    results = [transmit(sender, bytes([number]) * 900, 300, receiver.address) for number in range(10)]
    assert results == sorted(results)  # once congested, it stays so: nothing overtakes
    assert results[0] == 0
    assert results[-1] == 1
    assert congested(sender)
    assert calls == ["congested"]
    run("tc qdisc replace dev lo root tbf rate 1gbit burst 100k limit 10mb")
    sink = Recorder()
    receiver.attach(sink)
    while len(sink.datagrams) < 30:
        ready, _, _ = select.select([sender, receiver], [], [], 10)
        assert ready  # the sender too is woken through `fileno()` alone
        for port in ready:
            port.on_readable()
    assert calls == ["congested", "drained"]
    stats = sender.stats()
    assert stats.dropped == 0
    assert stats.queued == results.count(1)
    assert stats.would_block > 0
    assert stats.datagrams_out == 30
    numbers = [datagram[0] for datagram, _, _ in sink.datagrams]
    assert numbers == sorted(numbers)


def test_what_is_held_back_is_bounded(open_port: OpenPort, namespace: None, caplog: pytest.LogCaptureFixture) -> None:
    slow_loopback(limit="10mb")
    sender = open_port(buffer_bytes=1)
    while transmit(sender, payload(1000), 1000, ("127.0.0.1", 9)) == 0:
        pass
    for _ in range(300):
        assert transmit(sender, payload(8000), 1000, ("127.0.0.1", 9)) == 1
    stats = sender.stats()
    assert PENDING_LIMIT * 0.9 < (stats.queued - 1) * 8000 < PENDING_LIMIT
    assert stats.dropped == (300 - (stats.queued - 1)) * 8
    with caplog.at_level(logging.WARNING, "pilot.udp"):
        sender.on_writable()
        sender.on_writable()
    assert [record.getMessage().split(" on ")[0] for record in caplog.records] == [f"{stats.dropped} datagrams dropped"]
    sender.close()
    assert not congested(sender)


def test_tiny_datagrams_held_back_are_charged_for_their_bookkeeping(open_port: OpenPort, namespace: None) -> None:
    slow_loopback(limit="10mb")
    sender = open_port(buffer_bytes=1)
    while transmit(sender, payload(1000), 1000, ("127.0.0.1", 9)) == 0:
        pass
    for _ in range(30_000):
        transmit(sender, b"x", 1, ("127.0.0.1", 9))
    assert sender.stats().queued < PENDING_LIMIT / 48
    assert sender.stats().dropped > 0


def test_a_full_device_queue_is_retried_once_and_never_spins(open_port: OpenPort, namespace: None) -> None:
    slow_loopback(limit="6k")
    sender = open_port()
    results = [transmit(sender, payload(1000), 1000, ("127.0.0.1", 9)) for _ in range(20)]
    assert results[-1] == 1
    for _ in range(20):
        sender.on_writable()
    assert not congested(sender)
    stats = sender.stats()
    assert stats.dropped > 0
    assert stats.datagrams_out + stats.dropped == 20


def test_a_callback_that_closes_the_port_is_safe(open_port: OpenPort, namespace: None) -> None:
    slow_loopback(limit="10mb")
    sender = open_port(buffer_bytes=1)
    sender.on_congested = sender.close
    while not sender.closed:
        assert transmit(sender, payload(3000), 1000, ("127.0.0.1", 9)) in (0, 1)
    assert transmit(sender, b"x", 1, ("127.0.0.1", 9)) == -errno.EBADF


# --- own addresses ---


def test_local_address_towards() -> None:
    assert local_address_towards("127.0.0.1", 4000) == "127.0.0.1"
    assert local_address_towards("127.0.0.1", 0) == "127.0.0.1"
    assert local_address_towards("::ffff:127.0.0.1", 4000) == "127.0.0.1"
    assert local_address_towards("::1", 4000) == "::1"
    with pytest.raises(InvalidValueError, match="resolve names first"):
        local_address_towards("localhost", 4000)
    with pytest.raises(InvalidValueError, match="65536"):
        local_address_towards("127.0.0.1", 65536)


def test_no_route_is_an_os_error(namespace: None) -> None:
    with pytest.raises(OSError):
        local_address_towards("203.0.113.7", 4000)


def test_lan_addresses(namespace: None) -> None:
    assert lan_addresses() == []
    run("ip link add lan0 type veth peer name lan1")
    for address in ("192.0.2.1/24", "10.1.2.3/8", "172.31.0.1/16", "172.32.0.1/16", "192.168.5.6/24", "169.254.1.1/16"):
        run(f"ip addr add {address} dev lan0")
    run("ip addr add 10.9.9.9/8 dev lo")
    assert lan_addresses() == []  # down
    run("ip link set lan0 up")
    assert sorted(lan_addresses()) == ["10.1.2.3", "169.254.1.1", "172.31.0.1", "192.168.5.6"]
