"""`NameServerService`: answers queries and registrations of nodes on port 53 (plugin, L11). Source: services.md 6.1."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, Self

from pilot.coreapi import InvalidValueError, PilotError, Service, recover_plugin
from pilot.coreapi.files import private_directory, read_limited, write_atomically
from pilot.plugins._serving import StreamServer
from pilot.plugins.nameserver.lines import MAX_MESSAGE_BYTES, PORT, Request, parse_request_untrusted
from pilot.plugins.nameserver.records import Records

if TYPE_CHECKING:
    from pathlib import Path

    from pilot.coreapi import Deps, Stream

__all__ = ["NameServerHost", "NameServerService"]

SWEEP_SECONDS: Final = 60.0
"""Also between two saves of the state."""
REQUEST_SECONDS: Final = 10.0
STOP_SECONDS: Final = 1.0
MAX_STREAMS: Final = 256
MAX_STREAMS_PER_NODE: Final = 16
STATE_FILE: Final = "nameserver.json"
MAX_STATE_BYTES: Final = 16 << 20


class NameServerHost(Protocol):
    """What the plugin takes from its node beyond `Deps`."""

    @property
    def state_dir(self) -> Path | None:
        """Where `nameserver.json` is kept; None: nowhere, registrations last until the node stops."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        ...

    @property
    def wall(self) -> Callable[[], float]:
        """Unix seconds."""
        ...


class NameServerService(Service):
    """Keeps A, N and S records of any node that may open a stream to it. One request, one answer per stream.

    A and S records may only name the node that registers them, and an A record belongs to that node while it lives
    (1.18.0 lets others take it). All records end 5 minutes after the last registration; the file survives restarts.
    """

    name = "nameserver"
    order = 150

    def __init__(
        self,
        *,
        state_dir: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file = state_dir / STATE_FILE if state_dir is not None else None
        self._clock = clock
        self._wall = wall
        self._records = Records()
        self._server: StreamServer | None = None
        self._sweeping: asyncio.Task[None] | None = None

    @classmethod
    def for_node(cls, facilities: NameServerHost) -> Self:
        """The name server of one node."""
        return cls(state_dir=facilities.state_dir, clock=facilities.clock, wall=facilities.wall)

    def __len__(self) -> int:
        """How many records there are; expired ones count until the next sweep, once a minute."""
        return len(self._records)

    async def start(self, deps: Deps) -> None:
        """Reads the state and opens port 53. A state that cannot be used is logged and replaced by the next save.

        Raises:
            BusyError: somebody listens on the port already.
        """
        self._records = await self._load(deps)

        async def serve(stream: Stream) -> None:
            try:
                await self._serve(stream)
            except (PilotError, TimeoutError) as error:
                deps.logger.debug("a question of %s got no answer: %s", stream.remote_addr, error)

        server = StreamServer(self.name, deps, serve, most=MAX_STREAMS, most_per_peer=MAX_STREAMS_PER_NODE)
        await server.start(PORT)
        self._server = server
        self._sweeping = asyncio.create_task(self._sweep(deps), name="pilot name server sweep")

    async def stop(self) -> None:
        """Frees the port, answers what is being asked for at most a second, saves the state."""
        server, self._server = self._server, None
        sweeping, self._sweeping = self._sweeping, None
        if server is None or sweeping is None:
            return
        sweeping.cancel()
        await server.stop(STOP_SECONDS)
        await asyncio.wait([sweeping])
        await self._save()

    # ------------------------------------------------------------------------------------------ asking

    async def _serve(self, stream: Stream) -> None:
        """One request in one read, as the official server has it, and its answer."""
        stream.set_deadline(asyncio.get_running_loop().time() + REQUEST_SECONDS)
        data = await stream.read(MAX_MESSAGE_BYTES)
        if data:
            await stream.write(self.answer_untrusted(data, stream.remote_addr.node).encode()[:MAX_MESSAGE_BYTES])

    def answer_untrusted(self, data: bytes, caller: int) -> str:
        """What node `caller` is told when it sends `data`."""
        try:
            request = parse_request_untrusted(data)
            return self._query(request) if request.command == "QUERY" else self._register(request, caller)
        except InvalidValueError as error:
            return f"ERR {error}"

    def _query(self, request: Request) -> str:
        now = self._clock()
        if request.kind == "S":
            return self._services(request, now)
        found: object = (self._records.address if request.kind == "A" else self._records.network)(request.name, now)
        if found is None:
            what = "network" if request.kind == "N" else "name"
            raise InvalidValueError(f'{what} "{request.name}" not found')
        return f"{request.kind} {request.name} {found}"

    def _services(self, request: Request, now: float) -> str:
        """As many whole lines as an answer holds."""
        answer = ""
        for record in self._records.services(request.net_id, request.port, now):
            line = f"S {record.name} {record.address} {record.port}"
            longer = f"{answer}\n{line}" if answer else line
            if len(longer.encode()) > MAX_MESSAGE_BYTES:
                break
            answer = longer
        return answer or "S"

    def _register(self, request: Request, caller: int) -> str:
        now = self._clock()
        self._records.sweep(now)
        addr = request.address
        if addr is None:
            self._records.put_network(request.name, request.net_id, caller, now)
            return "OK"
        what = "service" if request.kind == "S" else "address"
        if addr.node != caller:
            raise InvalidValueError(f"cannot register {what} for another node")
        if request.kind == "S":
            self._records.put_service(request.name, addr, request.net_id, request.port, caller, now)
        else:
            self._records.put_address(request.name, addr, caller, now)
        return "OK"

    # ------------------------------------------------------------------------------------------ keeping

    async def _sweep(self, deps: Deps) -> None:
        with recover_plugin(self.name, "sweep", deps.events):
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                try:
                    await self._save()
                except OSError as error:
                    deps.logger.error("the records cannot be kept in %s: %s", self._file, error)

    async def _save(self) -> None:
        """Sweeps, and writes the state if it has changed. Cancelled, the write goes on in its thread."""
        now = self._clock()
        self._records.sweep(now)
        if self._file is None or not self._records.changed:
            return
        self._records.changed = False
        data = self._records.dump(now, self._wall())
        try:
            await asyncio.to_thread(_write, self._file, data)
        except OSError:
            self._records.changed = True
            raise

    async def _load(self, deps: Deps) -> Records:
        if self._file is None:
            return Records()
        try:
            data = await asyncio.to_thread(read_limited, self._file, MAX_STATE_BYTES)
            return Records.load(data, self._clock(), self._wall())
        except FileNotFoundError:
            return Records()
        except (InvalidValueError, OSError) as error:
            deps.logger.error("the records in %s are not used: %s", self._file, error)
            return Records()


def _write(path: Path, data: bytes) -> None:
    private_directory(path.parent)
    write_atomically(path, data)
