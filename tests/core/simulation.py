"""Random transfers between two nodes on a bad network: everything a seed decides, and what must hold in the end (L7).

`python -m tests.core.simulation SEED ...` runs single seeds and says what they were.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from typing import Any

from pilot._fast.errors import ClosedError, PilotError
from pilot._fast.mux import MuxSettings
from tests.core.virtual import (
    ACKED,
    CLOSED,
    CLOSED_WAKE,
    ESTABLISHED,
    READ,
    SYN_SENT,
    WRITE,
    Network,
    VirtualNode,
    join,
    pair,
)

SEGMENTS = (1152, 1152, 1402, 2000, 4096, 9000, 30_000, 60_000)
PORT = 7
BOUND = 900.0  # virtual seconds in which everything must have happened


@dataclass
class Plan:
    """What one end of a stream will do."""

    out: bytes
    expect: bytes
    chunk: int = 1 << 20
    starts: float = 0.0  # seconds of idleness before the first byte
    pauses: list[tuple[float, float]] = field(default_factory=list)
    ends: str = "orderly"  # "orderly": after everything; "early": after its own bytes; "abort"; "waits" for the other
    abort_after: float = 0.0


class End:
    """An application on one end: writes, reads, pauses and closes as planned, driven by wake-ups alone."""

    def __init__(self, network: Network, core: Any, plan: Plan) -> None:
        self.network = network
        self.core = core
        self.plan = plan
        self.sent = 0
        self.got = 0
        self.paused = False
        self.eof = False
        self.closed = False
        self.error: BaseException | None = None
        self.finished = False
        self.idle_until = network.now + plan.starts
        network.call_later(plan.starts, self.step)
        core.owner = self
        for after, length in plan.pauses:
            network.call_later(after, lambda length=length: self.pause(length))
        if plan.ends == "abort":
            network.call_later(plan.abort_after, self.abort)

    def pause(self, length: float) -> None:
        self.paused = True
        self.network.call_later(length, self.resume)

    def resume(self) -> None:
        self.paused = False
        self.step()

    def abort(self) -> None:
        self.closed = True
        self.core.abort()

    def _on_wake(self, events: int) -> None:
        if events & CLOSED_WAKE:
            self.finished = True
        self.step()

    def step(self) -> None:
        if self.core.state == SYN_SENT or self.network.now < self.idle_until:
            return
        try:
            self.write()
            if not self.paused:
                self.read()
        except (PilotError, TimeoutError) as error:
            self.error = self.error or error
            return
        if self.closed or self.eof:
            return
        done = self.sent == len(self.plan.out) and self.core.unacknowledged == 0
        complete = done and self.got == len(self.plan.expect)
        if (complete and self.plan.ends == "orderly") or (
            self.sent == len(self.plan.out) and self.plan.ends == "early"
        ):
            self.closed = True
            self.core.close()
            return
        self.core.interest = (0 if self.paused else READ) | (WRITE if self.sent < len(self.plan.out) else ACKED)

    def write(self) -> None:
        while not self.closed and not self.eof and self.sent < len(self.plan.out):
            try:
                taken = self.core.write(self.plan.out, self.sent)
            except ClosedError:  # the other end has closed: what it sent before is still to be read
                return
            if not taken:
                return
            self.sent += taken

    def read(self) -> None:
        while not self.closed and not self.eof:
            data = self.core.read(self.plan.chunk)
            if data is None:
                return
            if not data:
                self.eof = True
                self.core.close()
                return
            assert self.plan.expect.startswith(data, self.got), f"wrong bytes at {self.got}"
            self.got += len(data)


class Accepting:
    """Owner of the listener: gives every accepted stream its plan, by the order of the dials (port numbers)."""

    def __init__(self, network: Network, plans: dict[int, Plan]) -> None:
        self.network = network
        self.plans = plans
        self.ends: dict[int, End] = {}
        self.core: Any = None

    def _on_stream(self, core: Any) -> None:
        self.core.taken()
        end = End(self.network, core, self.plans[core.remote_port])
        self.ends[core.remote_port] = end


def conditions(rng: random.Random) -> dict[str, Any]:
    """A path: often tolerable, sometimes awful."""
    return {
        "delay": rng.choice([0.0005, 0.005, 0.02, 0.08]),
        "jitter": rng.choice([0.0, 0.0, 0.002, 0.02]),
        "loss": rng.choice([0.0, 0.0, 0.01, 0.05, 0.15]),
        "duplicate": rng.choice([0.0, 0.0, 0.1]),
        "reorder": rng.choice([0.0, 0.0, 0.1, 0.4]),
        "rate": rng.choice([0.0, 0.0, 200_000.0, 1_000_000.0, 10_000_000.0]),
        "queue": rng.choice([20_000, 100_000, 256 * 1024]),
        "mtu": rng.choice([65507, 65507, 9000, 1472, 1280]),
        "swallows": rng.choice([65507, 65507, 65507, 9000, 1400]),
    }


def amount(rng: random.Random) -> int:
    return rng.choice([0, 1, 2, 5, 1152, 1153, rng.randrange(20_000), rng.randrange(20_000), rng.randrange(120_000)])


def bytes_of(rng: random.Random, size: int) -> bytes:
    """Random, now and then with what looks like a SACK at places that will be cut."""
    data = bytearray(rng.randbytes(size))
    if rng.random() < 0.2:
        for at in (0, 1152, 2304, 4096, 9000, rng.randrange(size + 1)):
            if at + 20 < size:
                data[at : at + 6] = b"SACK" + bytes([rng.randrange(6), 0])
    return bytes(data)


def plans(rng: random.Random) -> tuple[Plan, Plan]:
    there, back = bytes_of(rng, amount(rng)), bytes_of(rng, amount(rng))
    dialer, acceptor = Plan(there, back), Plan(back, there)
    for plan in (dialer, acceptor):
        plan.chunk = rng.choice([1 << 20, 1 << 20, 5000, 100])
        plan.starts = rng.choice([0.0] * 8 + [0.5, 70.0, 150.0])
        plan.pauses = [(rng.uniform(0, 3), rng.uniform(0, 5)) for _ in range(rng.choice([0, 0, 1, 3]))]
    ends = rng.choice(["orderly"] * 6 + ["early", "abort"])
    active, passive = (dialer, acceptor) if rng.random() < 0.5 else (acceptor, dialer)
    active.ends, passive.ends = ends, "waits"
    active.abort_after = rng.uniform(0.0, 3.0)
    return dialer, acceptor


def settings(rng: random.Random) -> MuxSettings:
    return MuxSettings(
        receive_limit=rng.choice([0, 0, 4 << 20]),
        send_limit=rng.choice([2000, 50_000, 1 << 20]),
        memory_budget=rng.choice([1 << 30, 1 << 30, 300_000]),
        syn_rate=1000.0,
    )


def change_segments(network: Network, rng: random.Random, a: VirtualNode, b: VirtualNode) -> None:
    """The path-MTU prober at work, right or wrong: sizes change in mid-stream, in both directions."""
    for own, other in ((a, b), (b, a)):
        own.peer(other).segment_bytes = rng.choice(SEGMENTS)
        for _ in range(rng.choice([0, 1, 3])):
            size = rng.choice(SEGMENTS)
            network.call_later(
                rng.uniform(0.0, 2.0),
                lambda own=own, other=other, size=size: setattr(own.peer(other), "segment_bytes", size),
            )


def disturb(network: Network, rng: random.Random, a: VirtualNode, b: VirtualNode) -> bool:
    """Now and then an outage, a rekey, a new address; says whether bytes may have been out of reach for long."""
    outage = rng.random() < 0.1
    if outage:
        start, length = rng.uniform(0.0, 5.0), rng.uniform(0.1, 25.0)
        network.call_later(start, lambda: setattr(network, "dark", True))
        network.call_later(start + length, lambda: setattr(network, "dark", False))
    if rng.random() < 0.15:
        network.call_later(rng.uniform(0.0, 3.0), lambda: join(a, b, keep_previous=2.0))
    if rng.random() < 0.1:
        outage, node = True, rng.choice([a, b])  # until it sends something itself, nobody reaches it
        network.call_later(rng.uniform(0.0, 3.0), lambda: node.move(5000))
    for node in (a, b):
        node.scheduler.LATE = rng.choice([0.0, 2e-5, 0.003])
    return outage


def simulate(seed: int) -> str:
    """Run one seed; returns what it was, raises AssertionError with the seed when something does not hold."""
    rng = random.Random(seed)
    link = conditions(rng)
    network, a, b = pair(seed, settings(rng), settings(rng), **link)
    network.logging = False
    change_segments(network, rng, a, b)
    awful = disturb(network, rng, a, b) or link["loss"] > 0.04 or link["swallows"] < 65507
    accepting = {node: Accepting(network, {}) for node in (a, b)}
    for node, owner in accepting.items():
        node.listen(PORT, owner=owner)
    dialed: list[tuple[End, Accepting]] = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        own, other = rng.choice([(a, b), (b, a)])
        dialer, acceptor = plans(rng)
        core = own.mux.dial(own.peer(other), other.addr, PORT)
        accepting[other].plans[core.local_port] = acceptor
        end = End(network, core, dialer)
        core.interest = 1
        dialed.append((end, accepting[other]))
    story = f"seed {seed}: {len(dialed)} streams, {link}"
    try:
        finish(network, (a, b), dialed, awful=awful)
    except AssertionError as failure:
        raise AssertionError(f"{story}: {failure}") from failure
    return f"{story}, {network.now - 1000.0:.1f} s, {network.delivered} datagrams, {network.lost} lost"


def finish(
    network: Network, nodes: tuple[VirtualNode, ...], dialed: list[tuple[End, Accepting]], *, awful: bool
) -> None:
    """Run until every stream has ended, then look at what each end saw and at what is left behind."""

    def over() -> bool:
        return all(end.finished and end.core.state == CLOSED for end, _ in dialed)

    assert network.run(BOUND, over), f"not over: {[(e.core, e.sent, e.got, e.core.stats()) for e, _ in dialed]}"
    network.run(400.0, lambda: not any(node.mux.live or node.mux.all_streams() for node in nodes))
    network.run(200.0)  # readers that still pause or have not begun
    for end, accepting in dialed:
        other = accepting.ends.get(end.core.local_port)
        if other is None or isinstance(end.error, TimeoutError):
            assert end.plan.ends == "abort" or awful, f"never opened: {end.core.error()!r}"
            continue
        judge(end, other, awful)
        judge(other, end, awful)
    for node in nodes:
        assert node.mux.live == 0, f"{node.mux.live} streams live"
        assert node.mux.all_streams() == [], "streams left in the table"
        for peer in node.datapath.peers():
            assert (peer.in_flight, peer.open_streams) == (0, 0), f"left over: {peer.in_flight} in flight"


def judge(end: End, other: End, awful: bool) -> None:
    """What an end must have seen, given how both meant to end.

    A close over unacknowledged data has a time limit: on an awful path the last bytes may not make it, and must not
    look as if they had.
    """
    if "abort" in (end.plan.ends, other.plan.ends):
        return
    if awful and (end.error is not None or "early" in (end.plan.ends, other.plan.ends)):
        whole = end.got == len(end.plan.expect) or end.plan.ends == "early"
        assert whole or end.error is not None or not end.eof, f"cut short in silence: {end.got}"
        return
    assert end.error is None, f"{end.plan.ends} ended with {end.error!r} (got {end.got} of {len(end.plan.expect)})"
    assert end.core.error() is None, f"{end.plan.ends} ended with {end.core.error()!r}"
    if other.plan.ends in ("orderly", "early"):
        assert end.got == len(end.plan.expect), f"got {end.got} of {len(end.plan.expect)} bytes"
        assert end.eof, "no end of stream"
    if end.plan.ends == "orderly":
        assert end.got == len(end.plan.expect), f"got {end.got} of {len(end.plan.expect)} bytes"


def simulate_many(first: int, count: int) -> None:
    for seed in range(first, first + count):
        simulate(seed)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(simulate(int(argument)))


__all__ = ["ESTABLISHED", "End", "Plan", "simulate", "simulate_many"]
