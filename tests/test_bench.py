"""Every end-to-end benchmark runs, in tiny sizes that say nothing about speed, and prints the promised JSON."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.e2e import NAMES
from bench.harness import SubjectError, Worker
from bench.native import build
from bench.plot import DRAWINGS, Axis, Series, chart
from bench.report import DOCUMENT, with_table

ROOT = Path(__file__).parent.parent
PEERS = {
    "stream": {"c-limit", "uvloop-tls", "uvloop-tcp", "zmq-curve", "aioquic"},
    "stream-1152": {"c-limit", "uvloop-tls", "uvloop-tcp"},
    "stream-mtu1500": {"c-limit", "uvloop-tls", "uvloop-tcp"},
    "echo": {"uvloop-udp", "uvloop-tcp", "uvloop-tls", "zmq-curve", "aioquic"},
    "dial": {"uvloop-tcp", "uvloop-tls", "aioquic"},
    "datagram": {"uvloop-udp", "zmq-curve", "aioquic"},
    "many": {"uvloop-tcp", "uvloop-tls"},
    "events": {"fnmatch", "python-cached", "pyee"},
}
VARIANTS = {
    "stream": {"ours-callback"},
    "stream-1152": {"ours-callback"},
    "stream-mtu1500": {"ours-callback"},
    "echo": {"ours-no-busy-poll", "ours-callback"},
}
OPTIONAL = {"zmq-curve": "zmq", "aioquic": "aioquic", "pyee": "pyee"}
CELLS = [(name, peer) for name, peers in PEERS.items() for peer in sorted(peers)]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def skip_where_impossible(done: subprocess.CompletedProcess[str]) -> None:
    """Skips with the benchmark's own words where the machine lacks root, `ip` or a tun device."""
    if done.returncode and re.search(r"needs? root|no `ip` program|/dev/net/tun", done.stderr):
        pytest.skip(done.stderr.strip().splitlines()[-1])


@functools.cache
def result(name: str) -> dict[str, Any]:
    """The output of one benchmark; skips where it cannot run at all."""
    command = [sys.executable, str(ROOT / "bench" / "e2e.py"), name, "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380)
    skip_where_impossible(done)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@functools.cache
def lossy(*words: str) -> list[dict[str, Any]]:
    """The rows of the benchmark over a lossy link; skips where it cannot run at all."""
    command = [sys.executable, str(ROOT / "bench" / "wan.py"), "--quick", "--json", "--rtt-ms", "2", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380)
    skip_where_impossible(done)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["name"] == "wan"
    assert {"cpu", "cores", "date", "load"} <= found["machine"].keys()
    assert {"pilot", "python", "uvloop"} <= found["versions"].keys()
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def positive(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


@pytest.mark.parametrize("name", sorted(PEERS))
def test_the_promised_keys(name: str) -> None:
    found = result(name)
    assert found["name"] == name
    assert found["unit"]
    assert found["rounds"] == 1
    assert positive(found["ours"])
    assert found["peers"].keys() == found["ratio"].keys() == PEERS[name]
    assert {"cpu", "cores", "date", "load"} <= found["machine"].keys()
    assert {"pilot", "python", "uvloop", "cryptography"} <= found["versions"].keys()


@pytest.mark.parametrize(("name", "peer"), CELLS)
def test_a_peer_has_a_value_or_a_reason(name: str, peer: str) -> None:
    found = result(name)
    value = found["peers"][peer]
    if value is None:
        reason = found["reasons"][peer]
        assert found["ratio"][peer] is None
        assert peer in OPTIONAL or peer == "c-limit", reason
        pytest.skip(reason)
    assert positive(value)
    assert found["ratio"][peer] == pytest.approx(found["ours"] / value)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_stand_apart_from_ours(name: str) -> None:
    found = result(name)
    assert found["variants"].keys() == found["variant_ratio"].keys() == VARIANTS[name]
    for variant, value in found["variants"].items():
        assert positive(value)
        ratios = found["variant_ratio"][variant]
        assert ratios.keys() == PEERS[name]
        for peer, figure in found["peers"].items():
            assert ratios[peer] == (None if figure is None else pytest.approx(value / figure))


@pytest.mark.parametrize("name", ["stream", "stream-1152", "stream-mtu1500"])
def test_a_stream_tells_cpu_and_segment(name: str) -> None:
    found = result(name)
    ran = {peer for peer, value in found["peers"].items() if value is not None}
    assert found["cpu_s_per_gb"].keys() == {"ours", *ran, *VARIANTS[name]}
    expected = {"stream": range(8000, 65429), "stream-1152": [1152], "stream-mtu1500": range(1300, 1403)}
    assert found["segment_bytes"] in expected[name]


def test_echo_tells_percentiles() -> None:
    found = result("echo")
    assert found["ours"] == found["percentiles"]["ours"]["p50"]
    assert found["p99"]["ours"] >= found["ours"]


def test_dial_is_set_beside_echo() -> None:
    found = result("dial")
    assert found["dial_per_echo"] == pytest.approx(found["ours"] / found["echo_p50"])
    assert positive(found["close_p50"]["ours"])


def test_many_tells_both_ends() -> None:
    found = result("many")
    assert found["ends"]["ours"].keys() == {"client", "server"}
    assert positive(found["echo_p50"]["ours"])


def test_events_tells_fresh_topics() -> None:
    fresh = result("events")["fresh"]
    assert fresh["ratio"]["fnmatch"] == pytest.approx(fresh["ours"] / fresh["peers"]["fnmatch"])


def test_a_lossy_link_has_a_row_for_each_rate() -> None:
    rows = lossy("--loss", "0,0.05", "--peers", "tcp-bbr,tcp-cubic")
    assert [(row["kind"], row["loss"]) for row in rows] == [("ours", 0.0), ("ours", 0.05)]
    for row in rows:
        assert (row["rtt_ms"], row["rate_mbit"], row["unit"]) == (2.0, 1000.0, "MB/s")
        assert positive(row["ours"])
        assert row["peers"].keys() == row["ratio"].keys() == {"tcp-bbr", "tcp-cubic"}
        for peer, value in row["peers"].items():
            if value is None:
                assert "no TCP congestion control" in row["reasons"][peer]
            elif value:
                assert row["ratio"][peer] == pytest.approx(row["ours"] / value)


def test_a_lossy_link_loses_that_share() -> None:
    row = next(row for row in lossy("--loss", "0,0.05", "--peers", "tcp-bbr,tcp-cubic") if row["loss"])
    packets, lost = (sum(each[key] for each in row["link"]) for key in ("packets", "lost"))
    assert packets > 1000
    assert lost / packets == pytest.approx(0.05, rel=0.5)


@pytest.mark.interop
def test_a_lossy_link_to_a_stock_peer() -> None:
    rows = {row["kind"]: row for row in lossy("--stock", "--loss", "0.01")}
    assert rows.keys() == {"ours-to-official", "official-to-ours"}
    for row in rows.values():
        if row["peers"]["official"] is None:
            pytest.skip(row["reasons"]["official"])
        assert positive(row["ours"])


@pytest.mark.interop
def test_official() -> None:
    found = result("official")
    for key in ("ours", "peers", "ratio"):
        assert found[key].keys() == {"stream", "echo"}
    assert positive(found["ours"]["stream"])
    if found["peers"]["stream"]["official"] is None:
        pytest.skip(found["reasons"]["official"])
    for kind in ("stream", "echo"):
        ours = found["variants"][kind]["ours-no-busy-poll"]
        ratio = found["variant_ratio"][kind]["ours-no-busy-poll"]["official"]
        assert ratio == pytest.approx(ours / found["peers"][kind]["official"])
        assert found["ratio"][kind]["official"] == pytest.approx(found["ours"][kind] / found["peers"][kind]["official"])


def test_names() -> None:
    assert NAMES.keys() == {*PEERS, "official"}


async def test_a_subject_that_cannot_run_says_why() -> None:
    worker = await Worker.start("absent", "server", -1)
    try:
        with pytest.raises(SubjectError, match="absent cannot run here"):
            await worker.call("open")
    finally:
        await worker.stop()


async def test_a_call_that_fails_says_why_and_the_next_one_works() -> None:
    worker = await Worker.start("udp", "server", -1)
    try:
        with pytest.raises(SubjectError, match="udp server: open: "):
            await worker.call("open", host="no host")
        assert (await worker.call("open", host="127.0.0.1"))["port"] > 0
    finally:
        await worker.stop()


def test_the_c_limit_is_built_once() -> None:
    try:
        first = build()
    except RuntimeError as error:
        pytest.skip(str(error))
    built = first.stat().st_mtime_ns
    assert build() == first
    assert first.stat().st_mtime_ns == built


def test_the_document_holds_the_tables_of_the_results() -> None:
    text = DOCUMENT.read_text()
    assert with_table(text) == text


@pytest.mark.parametrize("plot", ["segments", "latency"])
def test_the_plots_are_those_of_the_results(plot: str) -> None:
    assert (DOCUMENT.parent / "plots" / f"{plot}.svg").read_text() == DRAWINGS[plot]()


def test_a_chart_is_well_formed() -> None:
    from xml.etree import ElementTree

    axis = Axis("x & y", 1, 100, [1, 10, 100], ["1", "10", "100"])
    drawing = ElementTree.fromstring(chart("a < b", "", axis, axis, [Series("one", [(1, 1), (100, 100)])]))
    lines = drawing.findall("{http://www.w3.org/2000/svg}polyline")
    assert [line.get("points") for line in lines] == ["80.0,364.0 610.0,46.0"]
