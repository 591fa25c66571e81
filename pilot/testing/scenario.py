"""A random world: machines, links, NAT boxes, traffic and trouble, all drawn from the world's seed (testing)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from pilot._fast.errors import PilotError
from pilot.testing.nat import NatType
from pilot.testing.traffic import Conversation, Side, Traffic

if TYPE_CHECKING:
    from pilot.testing.network import Address
    from pilot.testing.world import Machine, World

__all__ = ["play"]

TROUBLE_SECONDS: Final = 12.0
"""Trouble begins within this time."""
MOVES: Final = 0.2
"""Share of troubled worlds in which somebody moves."""
RECORDED: Final = 64
"""Datagrams an attacker remembers."""


async def play(world: World, tags: list[str]) -> None:
    """Plays the world's seed: everything is drawn here, and `tags` gets the names of what happens."""
    random = world.random
    _choose_links(world, random, tags)
    machines = _choose_machines(world, random, tags)
    traffic = Traffic(world)
    for machine in machines:
        await _start(machine, traffic)
    calm = random.random() < 0.4
    tags.append("calm" if calm else "trouble")
    tasks = _choose_traffic(world, machines, traffic, random)
    if not calm:
        for name in random.sample(sorted(TROUBLES), random.choice((1, 1, 2, 3))):
            tags.append(name)
            at = random.uniform(0.0, TROUBLE_SECONDS)
            tasks.append(asyncio.create_task(_later(at, TROUBLES[name], world, traffic, random)))
        # From a source of its own: the seeds that once found something have to stay what they were.
        apart = Random(f"moves {world.seed}")
        if apart.random() < MOVES:
            tags.append("move")
            tasks.append(asyncio.create_task(_later(apart.uniform(0.0, TROUBLE_SECONDS), _move, world, traffic, apart)))
    world.story = f"{len(machines)} machines, {len(traffic.conversations)} streams, {', '.join(tags)}"
    while pending := [task for task in tasks if not task.done()]:
        await asyncio.wait(pending)
    world.network.heal()
    world.rendezvous.up()
    await traffic.settle()
    world.stream_bytes = traffic.received
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            world.watch.violated(f"a program failed with {error!r}")
    if calm:
        traffic.check_calm()


async def _start(machine: Machine, traffic: Traffic, *, keep_key: bool = True) -> None:
    await machine.start(keep_key=keep_key)
    traffic.serve(machine)


async def _later(at: float, trouble: Trouble, world: World, traffic: Traffic, random: Random) -> None:
    await asyncio.sleep(at)
    await trouble(world, traffic, random)


# --------------------------------------------------------------------------------------------------- the world


def _choose_links(world: World, random: Random, tags: list[str]) -> None:
    options: dict[str, Any] = {
        "delay": random.choice((0.0005, 0.005, 0.02, 0.08)),
        "jitter": random.choice((0.0, 0.0, 0.002, 0.02)),
        "loss": random.choice((0.0, 0.0, 0.01, 0.03)),
        "burst_loss": random.choice((0.0, 0.0, 0.0, 0.002)),
        "duplicate": random.choice((0.0, 0.0, 0.1)),
        "reorder": random.choice((0.0, 0.0, 0.1, 0.3)),
        "rate": random.choice((0.0, 0.0, 300_000.0, 1_000_000.0, 10_000_000.0)),
        "queue": random.choice((30_000, 100_000, 256 * 1024)),
        "mtu": random.choice((65_507, 65_507, 9000, 1472, 1400)),
        "swallows": random.choice((65_507, 65_507, 65_507, 9000, 1400)),
    }
    world.network.link_options = options
    for name in ("jitter", "loss", "burst_loss", "duplicate", "reorder", "rate"):
        if options[name]:
            tags.append(f"link {name}")
    if min(options["mtu"], options["swallows"]) < 65_507:
        tags.append("link mtu")


def _choose_machines(world: World, random: Random, tags: list[str]) -> list[Machine]:
    machines = []
    box = None
    for _ in range(random.choice((2, 2, 2, 2, 3, 3, 4, 6))):
        kind = random.choice((None, None, None, *NatType))
        if kind is not None:
            tags.append(f"nat {kind.value}")
            if box is None or random.random() < 0.8:
                box = world.network.nat(kind, preserve_ports=random.random() < 0.8)
        machines.append(
            world.machine(
                nat=box if kind is not None else None,
                congestion=random.choice(("bbr", "bbr", "cubic")),
                relay_only=random.random() < 0.05,
                stream_bytes=random.choice((32 << 20, 1 << 20, 1 << 16)),
                memory_bytes=random.choice((1 << 30, 1 << 20)),
                max_segment_bytes=random.choice((65_428, 65_428, 9000, 1152)),
            )
        )
    return machines


def _choose_traffic(
    world: World, machines: list[Machine], traffic: Traffic, random: Random
) -> list[asyncio.Task[None]]:
    tasks: list[asyncio.Task[None]] = []
    for number in range(random.choice((1, 2, 2, 3, 4))):
        caller, callee = random.sample(machines, 2)
        there, back = random.randbytes(_size(random)), random.randbytes(_size(random))
        conversation = Conversation(
            number,
            caller,
            callee,
            random.choice(("orderly",) * 6 + ("early", "abort")),
            _side(there, back, random),
            _side(back, there, random),
            starts=random.choice((0.0, 0.0, random.uniform(0.0, 10.0))),
            abort_after=random.uniform(0.0, 3.0),
        )
        traffic.conversations.append(conversation)
        tasks.append(caller.spawn(traffic.call(conversation)))
    if random.random() < 0.4:
        caller, callee = random.sample(machines, 2)
        count = random.randrange(1, 40)
        own = Random(random.random())
        tasks.append(caller.spawn(traffic.send_datagrams(caller, callee, count, own)))
    return tasks


def _size(random: Random) -> int:
    return random.choice((0, 1, 1152, random.randrange(20_000), random.randrange(60_000), random.randrange(300_000)))


def _side(out: bytes, expect: bytes, random: Random) -> Side:
    slow = random.random() < 0.25
    return Side(
        out,
        expect,
        write_bytes=random.choice((65_536, 65_536, 5000)),
        read_bytes=random.choice((65_536, 65_536, 4000)),
        pause=random.uniform(0.0, 2.0) if slow else 0.0,
        pauses=random.randrange(1, 12) if slow else 0,
    )


# -------------------------------------------------------------------------------------------------- the trouble

Trouble = Callable[["World", Traffic, Random], Awaitable[None]]


async def _partition(world: World, traffic: Traffic, random: Random) -> None:
    """Two groups do not reach each other for a while; the rendezvous is in one of them, or in both."""
    hosts = [machine.host for machine in world.machines]
    random.shuffle(hosts)
    cut = random.randrange(1, len(hosts))
    groups = [hosts[:cut], hosts[cut:]]
    if random.random() < 0.7:
        groups[random.randrange(2)].append(world.rendezvous.host)
    world.network.partition(*groups)
    await asyncio.sleep(random.choice((random.uniform(0.5, 10.0), random.uniform(0.5, 10.0), 70.0, 200.0)))
    world.network.partition()


async def _dark(world: World, traffic: Traffic, random: Random) -> None:
    """One machine is cut off from everybody for a while."""
    host = random.choice(world.machines).host
    world.network.darken(host)
    await asyncio.sleep(random.uniform(0.1, 40.0))
    world.network.darken(host, dark=False)


async def _come_back(world: World, machine: Machine, traffic: Traffic, *, keep_key: bool) -> None:
    """Starts a machine again; a registry that cannot be reached just now is asked again."""
    while not machine.running:
        try:
            await _start(machine, traffic, keep_key=keep_key)
        except (PilotError, TimeoutError):
            await asyncio.sleep(5.0)


async def _crash(world: World, traffic: Traffic, random: Random) -> None:
    """A machine dies and comes back under its key."""
    await _die(world, traffic, random, keep_key=True)


async def _crash_without_key(world: World, traffic: Traffic, random: Random) -> None:
    """A machine dies and comes back as another node, at the same underlay address."""
    await _die(world, traffic, random, keep_key=False)


async def _die(world: World, traffic: Traffic, random: Random, *, keep_key: bool) -> None:
    machine = random.choice(world.machines)
    machine.crash()
    await asyncio.sleep(random.choice((0.0, random.uniform(0.0, 20.0))))
    await _come_back(world, machine, traffic, keep_key=keep_key)


async def _restart(world: World, traffic: Traffic, random: Random) -> None:
    """A node stops in order in the middle of its traffic, and starts again."""
    machine = random.choice(world.machines)
    await machine.stop()
    await asyncio.sleep(random.uniform(0.0, 5.0))
    await _come_back(world, machine, traffic, keep_key=True)


async def _nat_reboot(world: World, traffic: Traffic, random: Random) -> None:
    """Every NAT box loses its mappings."""
    for box in world.network.nats.values():
        box.reboot()


async def _move(world: World, traffic: Traffic, random: Random) -> None:
    """Machines and NAT boxes get other addresses, one or a few."""
    places = [machine.host.nat or machine.host for machine in world.machines]
    for _ in range(random.choice((1, 1, 2, 3))):
        world.network.move(random.choice(places))
        await asyncio.sleep(random.uniform(0.0, 40.0))


async def _clock(world: World, traffic: Traffic, random: Random) -> None:
    """A monotonic clock leaps ahead."""
    random.choice(world.machines).host.jump(random.choice((0.5, 5.0, 60.0, 4000.0)))


async def _wall_clock(world: World, traffic: Traffic, random: Random) -> None:
    """A wall clock is set."""
    random.choice(world.machines).host.set_wall(random.choice((-86_400.0, -5.0, 40.0, 86_400.0)))
    await asyncio.sleep(70.0)


async def _outage(world: World, traffic: Traffic, random: Random) -> None:
    """Registry and beacon are gone for a while."""
    world.rendezvous.down()
    await asyncio.sleep(random.uniform(0.5, 90.0))
    world.rendezvous.up()


async def _rekey(world: World, traffic: Traffic, random: Random) -> None:
    """Nodes ask for new session keys, from both sides at once."""
    for _ in range(random.randrange(1, 4)):
        for machine in world.machines:
            if machine.running:
                runtime = machine.node._running()
                for peer in runtime.datapath.peers():
                    runtime.tunnel.rekey(peer.node, runtime.clock())
        await asyncio.sleep(random.uniform(0.0, 4.0))


async def _worse(world: World, traffic: Traffic, random: Random) -> None:
    """Links turn bad, and good again: loss, bursts, a smaller path MTU."""
    links = list(world.network._links.values())
    before = [(link.loss, link.burst_loss, link.swallows, link.delay) for link in links]
    loss, burst = random.choice((0.1, 0.3, 0.5)), random.choice((0.0, 0.02))
    swallows = random.choice((65_507, 1300))
    for link in links:
        link.loss, link.burst_loss, link.swallows, link.delay = loss, burst, swallows, link.delay * 3
    await asyncio.sleep(random.uniform(1.0, 30.0))
    for link, values in zip(links, before, strict=True):
        link.loss, link.burst_loss, link.swallows, link.delay = values


async def _attack(world: World, traffic: Traffic, random: Random) -> None:
    """Somebody on the way repeats, damages and forges what passes, under the addresses of others."""
    seen: list[tuple[Address, Address, bytes]] = []

    def tap(now: float, source: Address, target: Address, data: bytes) -> None:
        if len(seen) < RECORDED:
            seen.append((source, target, data))
        elif random.random() < 0.05:
            seen[random.randrange(RECORDED)] = (source, target, data)

    world.network.taps.append(tap)
    for _ in range(random.randrange(20, 200)):
        await asyncio.sleep(random.random() * 0.1)
        if seen:
            source, target, data = random.choice(seen)
            forged = bytearray(data)
            how = random.randrange(5)
            if how == 0:
                forged[random.randrange(len(forged))] ^= 1 << random.randrange(8)
            elif how == 1:
                del forged[random.randrange(len(forged)) :]
            elif how == 2:
                source = (f"192.0.2.{random.randrange(1, 255)}", random.randrange(1, 65_536))
            elif how == 3:
                forged[4:8] = random.randbytes(4)
            world.network.inject(bytes(forged), source, target, delay=random.random() * 0.05)
    world.network.taps.remove(tap)


TROUBLES: Final[dict[str, Trouble]] = {
    "attack": _attack,
    "clock jump": _clock,
    "crash": _crash,
    "crash without key": _crash_without_key,
    "dark": _dark,
    "nat reboot": _nat_reboot,
    "outage": _outage,
    "partition": _partition,
    "rekey": _rekey,
    "restart": _restart,
    "wall clock": _wall_clock,
    "worse links": _worse,
}
