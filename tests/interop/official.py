"""The official daemon 1.18.0 as a black-box peer: fetched, started, driven, its log judged (L9, from outside).

It only ever runs through `ip netns exec` in a namespace that has nothing but loopback, with telemetry, message of the
day and skill injection off, and with HOME in a temporary directory.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.interop.ipc import IpcClient, eventually
from tests.interop.netns import Namespace
from tests.reference.addr import Address, parse_untrusted

VERSION = "1.18.0"
WHEEL_SHA256 = "08c19477e96934097313c95cb6b018fc32e328c20f5efbff9353e2e82db4a319"
CACHE = Path(os.environ.get("PILOT_INTEROP_CACHE", "~/.cache/pilot-interop")).expanduser()

# A killed test run takes its daemons along.
DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()

# Log lines at WARN or ERROR that say nothing about a peer or a rendezvous (observed beside correct ones).
ALWAYS_NORMAL = ("IPC read error",)
# Normal after the named event, and only then; a tunnel is lost when a peer restarts or ends its trust.
AFTER_RENDEZVOUS_RESTART = (
    "registry pool conn reconnect failed",
    "heartbeat failed",
    "some trust pairs not re-synced",
    "re-registered with new node ID",
)
AFTER_TUNNEL_LOSS = (
    "encrypted packet from node but no key",
    "rejecting unauthenticated key exchange from peer with known identity",
    "tunnel packet outside replay window",
)
# A send of a local program, on its way when the peer reset the stream.
AFTER_STREAM_RESET = ("IPC stream send failed",)
# The side whose trust was revoked sometimes answers a peer whose address it has just forgotten.
AFTER_TRUST_ENDED = (*AFTER_TUNNEL_LOSS, "send key exchange failed")
# An approval travels directly and through the mailbox; when both arrive, the later one has nothing to match.
AFTER_MAILBOX_APPROVAL = ("dropping handshake acceptance with no matching outgoing request",)
WHEN_STRANGERS_CALL = ("SYN rejected: untrusted source",)
WHEN_HANDSHAKES_ARE_REJECTED = ("handshake rejected by peer",)


class CtlError(Exception):
    """pilotctl exited with a failure: its error code, its text, and what it printed."""

    def __init__(self, code: str, message: str, stdout: str) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.code = code
        self.message = message
        self.stdout = stdout


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the two official programs are."""

    daemon: Path
    ctl: Path


def fetch() -> Programs:
    """Return the programs, downloading the wheel into the cache if it is not there; RuntimeError says why it cannot.

    Must run outside the namespace. The wheel is unpacked for these two files only; nothing else of it is used.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise RuntimeError("the pinned official wheel is for Linux x86_64")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wheel = _wheel() or _download()
        unpacked = CACHE / VERSION
        programs = Programs(unpacked / "pilot-daemon", unpacked / "pilotctl")
        if not (programs.daemon.exists() and programs.ctl.exists()):
            _unpack(wheel, unpacked)
    return programs


def _wheel() -> Path | None:
    return next(CACHE.glob(f"pilotprotocol-{VERSION}-*.whl"), None)


def _download() -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(CACHE), f"pilotprotocol=={VERSION}"], capture_output=True, text=True)
    wheel = _wheel()
    if done.returncode or wheel is None:
        raise RuntimeError(f"pilotprotocol=={VERSION} cannot be downloaded: {done.stderr.strip()[-300:]}")
    return wheel


def _unpack(wheel: Path, target: Path) -> None:
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise RuntimeError(f"{wheel} is not the wheel this harness was written for")
    target.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in ("pilot-daemon", "pilotctl"):
            partial = target / f"{name}.partial"
            partial.write_bytes(archive.read(f"pilotprotocol/bin/{name}"))
            partial.chmod(0o755)
            partial.rename(target / name)


@dataclass
class OfficialDaemon:
    """One official daemon; `directory` is its home and its state, so starting again is a restart of the same node.

    `host` is the address it binds and is known by, `port` its UDP port. Flags not listed go into `flags`, for instance
    ("-networks", "1"). After `start` it is registered and its local socket answers.
    """

    programs: Programs
    namespace: Namespace
    directory: Path
    registry: str
    beacon: str
    host: str
    port: int = 4000
    hostname: str = ""
    email: str = ""
    public: bool = False
    relay_only: bool = False
    encrypt: bool = True
    trust_auto_approve: bool = False
    admin_token: str = ""
    log_level: str = "info"
    flags: Sequence[str] = ()

    node_id: int = field(default=0, init=False)
    address: Address = field(default=Address(0, 0), init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def socket(self) -> Path:
        """The daemon's local socket."""
        return self.directory / "pilot.sock"

    @property
    def log(self) -> Path:
        """Everything the daemon printed, over all its starts."""
        return self.directory / "daemon.log"

    @property
    def endpoint(self) -> tuple[str, int]:
        """Where its tunnel socket is bound."""
        return self.host, self.port

    @property
    def pid(self) -> int:
        """The process id, while it runs."""
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    # -- life

    async def start(self, timeout: float = 30.0) -> None:
        """Start and wait until it is registered; RuntimeError with the end of its log when it exits or takes longer."""
        assert self._process is None, "the daemon runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        self._process = self._spawn()
        try:
            await eventually(self._answers, timeout)
        except (TimeoutError, RuntimeError):
            await self.kill()
            raise RuntimeError(f"pilot-daemon did not start:\n{self._log_end()}") from None
        except BaseException:
            await self.kill()
            raise

    async def stop(self, timeout: float = 10.0) -> None:
        """Stop with SIGTERM, as an operator does: it ends its streams with FIN.

        Takes up to 5 s when the daemon is younger than that, because it waits for a timer of its start.
        """
        await self._end(signal.SIGTERM, timeout)

    async def kill(self) -> None:
        """Stop with SIGKILL: nobody is told."""
        await self._end(signal.SIGKILL, 10.0)

    async def restart(self, *, kill: bool = False) -> None:
        """Stop or kill, then start with the same identity and port; the tunnel key is new, as after every start."""
        await (self.kill() if kill else self.stop())
        await self.start()

    async def _end(self, how: signal.Signals, timeout: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            await eventually(lambda: process.poll() is not None, timeout)
        finally:
            process.kill()
            process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.namespace.command(*DIE_WITH_US, str(self.programs.daemon), *self._arguments()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                cwd=self.directory,
            )

    async def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("exited")
        if not self.socket.exists():
            return False
        try:
            async with await self.ipc() as client:
                info = await client.info()
        except OSError:
            return False
        self.node_id = info["node_id"]
        self.address = parse_untrusted(info["address"])
        return True

    def _arguments(self) -> list[str]:
        named = {
            "-registry": self.registry,
            "-beacon": self.beacon,
            "-listen": f"{self.host}:{self.port}",
            "-socket": str(self.socket),
            "-identity": str(self.directory / "identity.json"),
            "-hostname": self.hostname,
            "-email": self.email,
            "-admin-token": self.admin_token,
            "-log-level": self.log_level,
        }
        switches = {
            "-public": self.public,
            "-relay-only": self.relay_only,
            "-trust-auto-approve": self.trust_auto_approve,
            "-encrypt=false": not self.encrypt,
        }
        arguments = ["-log-format", "json", "-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject"]
        arguments += [word for flag, value in named.items() if value for word in (flag, value)]
        arguments += [flag for flag, wanted in switches.items() if wanted]
        return [*arguments, *self.flags]

    def _environment(self) -> dict[str, str]:
        home = str(self.directory)
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": home, "PILOT_HOME": home}
        environment |= {"PILOT_NO_SKILLINJECT": "1", "PILOT_TELEMETRY_URL": "", "PILOT_MOTD_URL": ""}
        return environment

    def _ctl_environment(self) -> dict[str, str]:
        environment = {"PILOT_SOCKET": str(self.socket), "PILOT_REGISTRY": self.registry}
        if self.admin_token:
            environment["PILOT_ADMIN_TOKEN"] = self.admin_token
        return environment

    # -- driving

    async def ipc(self, *, high_water: int | None = None) -> IpcClient:
        """Return a new client of its local socket; use it as an async context manager."""
        return await IpcClient.connect(self.socket, high_water=high_water)

    async def ctl_raw(self, *arguments: str, timeout: float = 60.0) -> tuple[int, str, str]:
        """Run pilotctl for this daemon; return exit code, standard output and standard error."""
        process = await asyncio.create_subprocess_exec(
            *self.namespace.command(str(self.programs.ctl), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment() | self._ctl_environment(),
            cwd=self.directory,
        )
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, stdout.decode(), stderr.decode()

    async def ctl(self, *arguments: str, timeout: float = 60.0) -> Any:
        """Run `pilotctl --json` and return the `data` of its answer; CtlError when it fails, TimeoutError when late."""
        code, stdout, stderr = await self.ctl_raw("--json", *arguments, timeout=timeout)
        if code:
            failure = _json_line(stderr) or {}
            raise CtlError(failure.get("code", ""), failure.get("message", stderr.strip() or stdout.strip()), stdout)
        answer = _json_line(stdout)
        assert answer is not None, f"pilotctl {arguments} printed no JSON: {stdout!r}"
        return answer["data"]

    # -- judging

    def records(self) -> list[dict[str, Any]]:
        """Return its log as objects with `level` and `msg`; lines that are no JSON have level RAW."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [_json_line(line) or {"level": "RAW", "msg": line} for line in lines]

    def log_problems(self, *expected: str) -> list[str]:
        """Return what it logged at WARN or ERROR, or while crashing, except lines that contain an expected text."""
        return [
            json.dumps(record)
            for record in self.records()
            if _is_problem(record) and not any(text in record["msg"] for text in (*ALWAYS_NORMAL, *expected))
        ]

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-20:])


def _json_line(text: str) -> dict[str, Any] | None:
    """Return the first line that is a JSON object."""
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                return value
    return None


def _is_problem(record: dict[str, Any]) -> bool:
    if record["level"] == "RAW":
        return record["msg"].startswith(("panic", "fatal", "goroutine "))
    return record["level"] in ("WARN", "ERROR")


@asynccontextmanager
async def official_daemon(daemon: OfficialDaemon, *, expect: Sequence[str] = ()) -> AsyncIterator[OfficialDaemon]:
    """Run a daemon for the block, then kill it; when the block went well its log must hold no problem but `expect`."""
    await daemon.start()
    try:
        yield daemon
    except BaseException:
        print(f"--- log of official daemon {daemon.hostname or daemon.host}\n{daemon.log.read_text()}")
        raise
    finally:
        await daemon.kill()
    problems = daemon.log_problems(*expect)
    assert not problems, "official daemon complained:\n" + "\n".join(problems)
