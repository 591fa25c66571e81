"""`NodeConfig`: every setting of a node with its meaning and limits, and how the command collects them (L9)."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pilot._fast.errors import InvalidValueError
from pilot.protocol.endpoints import join_endpoint, split_endpoint_untrusted
from pilot.protocol.names import hostname_untrusted
from pilot.protocol.registry import MAX_NETWORK_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NodeConfig", "default_config_file", "default_state_dir", "parse_endpoint", "parse_listen"]

MAX_DEADLINE: Final = 24 * 3600.0
ENVIRONMENT_PREFIX: Final = "PILOT_"


def _setting(default: Any, doc: str) -> Any:
    """A field whose documentation is at hand at run time: for `--help` and for the table in the documentation."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The settings of one node. Checked when created.

    `Node(...)` takes these as keyword arguments or an instance; it reads neither environment nor files.

    Raises:
        InvalidValueError: a setting cannot be used; the message names it, its value and what to write instead.
    """

    registry: str = _setting("127.0.0.1:9000", "Address of the registry (TCP): `host:port`.")
    registry_tls: str = _setting(
        "",
        "Protection of the registry connection: empty for none, `system` for TLS checked against the system's roots, "
        "or the SHA-256 fingerprint (64 hex digits) of the one certificate to accept.",
    )
    beacon: str = _setting(
        "",
        "Beacons (UDP): `host:port`, several separated by commas. Empty: the registry's host and the port after the "
        "registry's, where `pilot rendezvous` has it. `none`: no beacon, so neither hole punching nor relay.",
    )
    listen: str = _setting(
        ":0", "Local UDP address of the tunnel: `host:port`. Empty host: every address, IPv6 too. Port 0: any free one."
    )
    endpoint: str = _setting(
        "", "UDP address to register instead of the one the beacon sees: `host:port`, for a fixed port forwarding."
    )
    hostname: str = _setting("", "Name to be found by: 1 to 63 of `a-z 0-9 -`. Empty: the name is left as it is.")
    state_dir: str | os.PathLike[str] | None = _setting(  # noqa: RUF009 - a field() as the others
        None, "Directory of identity, trust and caches, used by one node at a time. None: a new identity in memory."
    )
    join: str = _setting(
        "", "Networks to join at the start if this node is not in them yet: numbers separated by commas."
    )
    public: bool = _setting(False, "Whether strangers may find and reach this node.")
    email: str = _setting("", "Account e-mail address the registration carries. Empty: a stand-in made from the key.")
    relay_only: bool = _setting(False, "Hide this node's address: everything goes through the beacon.")
    end_when_deaf: bool = _setting(
        False,
        "Whether the node ends when nothing arrives any more and asking to be found again has not helped: `pilot up` "
        "then ends with code 86, for a supervisor to start it anew. At most three times in two hours.",
    )
    echo: bool = _setting(True, "Whether the echo service (port 7) runs; `pilot ping` and peers measure with it.")
    gso: bool = _setting(
        True,
        "Whether the kernel cuts bursts into datagrams (UDP_SEGMENT), where it can; off where a driver spoils them.",
    )
    gro: bool = _setting(True, "Whether the kernel merges arriving datagrams (UDP_GRO), where it can.")
    recvmmsg: bool = _setting(True, "Whether several buffers are received per system call (recvmmsg), where possible.")
    busy_poll_us: int = _setting(
        50,
        "Microseconds the node looks for the next packet of a quick exchange before it sleeps, as long as that has "
        "lately paid. 0: never. At most 10000.",
    )
    dial_timeout: float = _setting(30.0, "Seconds `dial` takes at most when it is given no timeout of its own.")
    memory_bytes: int = _setting(1 << 30, "Bytes all receive, and all send buffers take at most; 1 MiB or more.")
    stream_bytes: int = _setting(
        32 << 20, "Bytes one stream buffers at most in each direction; it starts with far less."
    )
    congestion: str = _setting("bbr", "Congestion control: `bbr` (a model of the path, tolerates loss) or `cubic`.")
    max_segment_bytes: int = _setting(
        65_428, "Most stream bytes in one packet, where the path carries them; 1152 to 65428. 1152 means: never probe."
    )
    syn_rate: float = _setting(100.0, "Streams per second that all peers together may open to this node.")
    peer_syn_rate: float = _setting(10.0, "Streams per second that one peer may open to this node.")
    peer_syn_burst: int = _setting(64, "Streams that one peer may open at once before `peer_syn_rate` counts.")
    streams_per_port: int = _setting(1024, "Streams a listener's port may have open; more are refused.")
    backlog: int = _setting(128, "Streams a listener holds that nobody has accepted yet; more are refused. 1 to 65535.")
    datagram_queue: int = _setting(1024, "Datagrams an inbox holds before the oldest are dropped. 1 to 1048576.")

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            _check_type(setting.name, getattr(self, setting.name), str(setting.type))
        parse_endpoint("registry", self.registry)
        for beacon in self.beacon_list():
            parse_endpoint("beacon", beacon)
        parse_listen(self.listen)
        self.join_list()
        if self.endpoint:
            parse_endpoint("endpoint", self.endpoint)
        if self.hostname:
            hostname_untrusted(self.hostname)
        if self.email and "@" not in self.email:
            raise InvalidValueError(
                f"email={self.email!r} is no e-mail address: write one with an @, or leave it empty"
            )
        _check_range("busy_poll_us", self.busy_poll_us, 0, 10_000)
        _check_range("dial_timeout", self.dial_timeout, 0.001, MAX_DEADLINE)
        _check_range("memory_bytes", self.memory_bytes, 1 << 20, 1 << 48)
        _check_range("stream_bytes", self.stream_bytes, 1 << 16, 1 << 30)
        if self.congestion not in ("bbr", "cubic"):
            raise InvalidValueError(f"congestion={self.congestion!r} is not known: write 'bbr' or 'cubic'")
        _check_range("max_segment_bytes", self.max_segment_bytes, 1152, 65_428)
        _check_range("syn_rate", self.syn_rate, 0.1, 1e6)
        _check_range("peer_syn_rate", self.peer_syn_rate, 0.1, 1e6)
        _check_range("peer_syn_burst", self.peer_syn_burst, 1, 1e6)
        _check_range("streams_per_port", self.streams_per_port, 1, 65535)
        _check_range("backlog", self.backlog, 1, 65535)
        _check_range("datagram_queue", self.datagram_queue, 1, 1 << 20)

    def beacon_list(self) -> list[str]:
        """The configured beacons as `host:port` texts: the derived one when none is given, none with `none`."""
        if self.beacon == "none":
            return []
        if not self.beacon:
            host, port = parse_endpoint("registry", self.registry)
            return [join_endpoint(host, port + 1)] if port < 65535 else []
        return [part.strip() for part in self.beacon.split(",")]

    def join_list(self) -> list[int]:
        """The numbers of the networks to join at the start."""
        parts = [part.strip() for part in self.join.split(",") if part.strip()]
        if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MAX_NETWORK_ID for part in parts):
            raise InvalidValueError(
                f"join={self.join!r} cannot be used: write numbers in 1..{MAX_NETWORK_ID}, separated by commas"
            )
        return [int(part) for part in parts]

    @classmethod
    def load(
        cls, flags: Mapping[str, Any], environment: Mapping[str, str], file: str | os.PathLike[str] | None = None
    ) -> Self:
        """The settings of the command: flag, else environment (`PILOT_<SETTING>`), else TOML file, else default.

        `flags` holds what was given on the command line; None counts as not given. `file` None means no file. In the
        environment booleans are `1/0`, `true/false`, `yes/no`, `on/off`, and `PILOT_NO_<SETTING>` is the opposite of
        `PILOT_<SETTING>`, as the flag `--no-<setting>` is (`PILOT_NO_GSO=1`); given both, it wins.

        Raises:
            InvalidValueError: the file cannot be read, holds an unknown setting, or a value cannot be used; the message
                says where it came from.
        """
        names = {setting.name: str(setting.type) for setting in dataclasses.fields(cls)}
        values = _read_toml(Path(file), names) if file is not None else {}
        for name, kind in names.items():
            variable = ENVIRONMENT_PREFIX + name.upper()
            opposite = f"{ENVIRONMENT_PREFIX}NO_{name.upper()}"
            if variable in environment:
                values[name] = _from_text(variable, environment[variable], kind)
            if kind == "bool" and opposite in environment:
                values[name] = not _from_text(opposite, environment[opposite], kind)
        values.update({name: value for name, value in flags.items() if value is not None})
        return cls(**values)


def default_state_dir(environment: Mapping[str, str]) -> Path:
    """Where the command keeps its node: `$PILOT_HOME/.pilot/node`, else `pilot` in the XDG state directory."""
    if home := environment.get("PILOT_HOME"):
        return Path(home) / ".pilot" / "node"
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pilot"


def default_config_file(environment: Mapping[str, str]) -> Path:
    """The command's TOML file: `$PILOT_CONFIG`, else `pilot/pilot.toml` in the XDG configuration directory."""
    if path := environment.get("PILOT_CONFIG"):
        return Path(path)
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pilot" / "pilot.toml"


def parse_endpoint(setting: str, text: str, *, listening: bool = False) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`; with `listening` the host may be empty and the port 0.

    Raises:
        InvalidValueError: it is neither; the message names `setting`.
    """
    try:
        return split_endpoint_untrusted(text, listening=listening)
    except InvalidValueError as error:
        raise InvalidValueError(f"{setting}={text!r} cannot be used: {error}") from None


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of the `listen` setting.

    Raises:
        InvalidValueError: it cannot be used; the message names the setting.
    """
    return parse_endpoint("listen", text, listening=True)


_KINDS: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "str": ((str,), "a text"),
    "bool": ((bool,), "True or False"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str | os.PathLike[str] | None": ((str, os.PathLike, type(None)), "a path or None"),
}


def _check_type(name: str, value: object, kind: str) -> None:
    types, wanted = _KINDS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise InvalidValueError(f"{name}={value!r} cannot be used: write {wanted}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidValueError(f"{name}={value!r} is out of range: write {low:g} to {high:g}")


def _read_toml(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValueError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"configuration file {path} is no TOML: {error}") from None
    for name in values:
        if name not in names:
            raise InvalidValueError(
                f"configuration file {path} holds {name!r}, which is no setting: {', '.join(names)}"
            )
    return values


_TRUTH: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _from_text(source: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return _TRUTH[text.strip().lower()]
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except (KeyError, ValueError):
        raise InvalidValueError(f"{source}={text!r} cannot be used: write {_KINDS[kind][1]}") from None
    return text
