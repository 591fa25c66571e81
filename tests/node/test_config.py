"""Settings: where they come from, and what is refused with which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.errors import InvalidValueError
from pilot.node.config import NodeConfig, default_config_file, default_state_dir, parse_endpoint, parse_listen


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "pilot.toml"
    file.write_text('hostname = "file"\nregistry = "file:1"\nlisten = "file:1"\n')
    environment = {"PILOT_HOSTNAME": "environment", "PILOT_REGISTRY": "environment:1", "OTHER": "x"}
    config = NodeConfig.load({"hostname": "flag", "public": None}, environment, file)
    assert config.hostname == "flag"
    assert config.registry == "environment:1"
    assert config.listen == "file:1"
    assert config.public is False


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PUBLIC", "Yes", True),
        ("ECHO", "0", False),
        ("GSO", "off", False),
        ("BACKLOG", "7", 7),
        ("DIAL_TIMEOUT", "2.5", 2.5),
        ("STATE_DIR", "/x", "/x"),
    ],
)
def test_environment_values(name: str, text: str, value: Any) -> None:
    assert getattr(NodeConfig.load({}, {f"PILOT_{name}": text}), name.lower()) == value


@pytest.mark.parametrize("setting", ["gso", "gro", "recvmmsg", "echo"])
def test_switching_off_by_environment(setting: str) -> None:
    name = setting.upper()
    assert getattr(NodeConfig.load({}, {}), setting) is True
    assert getattr(NodeConfig.load({}, {f"PILOT_NO_{name}": "1"}), setting) is False
    assert getattr(NodeConfig.load({}, {f"PILOT_NO_{name}": "no"}), setting) is True
    assert getattr(NodeConfig.load({}, {f"PILOT_NO_{name}": "1", f"PILOT_{name}": "1"}), setting) is False
    assert getattr(NodeConfig.load({setting: True}, {f"PILOT_NO_{name}": "1"}), setting) is True
    with pytest.raises(InvalidValueError, match=f"PILOT_NO_{name}='maybe'"):
        NodeConfig.load({}, {f"PILOT_NO_{name}": "maybe"})


def test_only_booleans_have_an_opposite() -> None:
    assert NodeConfig.load({}, {"PILOT_NO_HOSTNAME": "x"}) == NodeConfig()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("registry", "nohost"),
        ("registry", ":9000"),
        ("registry", "host:0"),
        ("registry", "host:65536"),
        ("registry", "::1:9000"),
        ("beacon", "a:1,b"),
        ("listen", "9000"),
        ("endpoint", "1.2.3.4"),
        ("hostname", "UPPER"),
        ("email", "nobody"),
        ("public", 1),
        ("backlog", True),
        ("busy_poll_us", -1),
        ("busy_poll_us", 10_001),
        ("gso", 1),
        ("backlog", 0),
        ("state_dir", 5),
        ("dial_timeout", float("nan")),
        ("dial_timeout", 0),
        ("memory_bytes", 1000),
        ("datagram_queue", 0),
        ("max_segment_bytes", 1000),
        ("max_segment_bytes", 65_429),
        ("syn_rate", 0.0),
        ("peer_syn_rate", float("inf")),
        ("peer_syn_burst", 0),
        ("streams_per_port", 0),
        ("join", "team"),
        ("join", "0"),
        ("join", "65536"),
        ("join", "1;2"),
        ("join", "-1"),
        ("join", "\u0663"),
    ],
)
def test_unusable_settings_are_named(setting: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=setting if setting != "hostname" else "UPPER"):
        NodeConfig(**{setting: value})


@pytest.mark.parametrize(("name", "text"), [("PUBLIC", "maybe"), ("BACKLOG", "x"), ("DIAL_TIMEOUT", "")])
def test_unusable_environment_values_are_named(name: str, text: str) -> None:
    with pytest.raises(InvalidValueError, match=f"PILOT_{name}"):
        NodeConfig.load({}, {f"PILOT_{name}": text})


@pytest.mark.parametrize("content", ["hostnam = 'x'", "= 1", "\udcff"])
def test_unusable_files_are_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "pilot.toml"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidValueError, match=r"pilot\.toml"):
        NodeConfig.load({}, {}, file)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"none\.toml"):
        NodeConfig.load({}, {}, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("registry", "beacon", "beacons"),
    [
        ("h:9000", "", ["h:9001"]),
        ("[::1]:9000", "", ["[::1]:9001"]),
        ("h:9000", "none", []),
        ("h:65535", "", []),
        ("h:9000", "a:1, b:2", ["a:1", "b:2"]),
    ],
)
def test_beacons(registry: str, beacon: str, beacons: list[str]) -> None:
    assert NodeConfig(registry=registry, beacon=beacon).beacon_list() == beacons


def test_networks_to_join() -> None:
    assert NodeConfig().join_list() == []
    assert NodeConfig(join=" 5,7 , 65535,").join_list() == [5, 7, 65535]


def test_endpoints() -> None:
    assert parse_endpoint("x", "[::1]:7") == ("::1", 7)
    assert parse_listen(":0") == ("", 0)
    assert parse_listen("[::1]:4000") == ("::1", 4000)


def test_every_setting_is_documented() -> None:
    for setting in dataclasses.fields(NodeConfig):
        assert len(setting.metadata["doc"]) > 20, setting.name


def test_where_the_command_looks(tmp_path: Path) -> None:
    assert default_state_dir({"PILOT_HOME": "/h"}) == Path("/h/.pilot/node")
    assert default_state_dir({"XDG_STATE_HOME": "/s"}) == Path("/s/pilot")
    assert default_config_file({"PILOT_CONFIG": "/c"}) == Path("/c")
    assert default_config_file({"XDG_CONFIG_HOME": "/x"}) == Path("/x/pilot/pilot.toml")
