"""Measures everything into `bench/results`, and prints the table of docs/PERFORMANCE.md from it (bench).

python bench/report.py measure          all names and the sweep over segment sizes, some twenty minutes
python bench/report.py measure stream   only these
python bench/report.py table            the Markdown table of what is there
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

__all__ = ["RESULTS", "SEGMENTS", "load"]

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
NAMES: Final = ("stream", "stream-1152", "stream-mtu1500", "echo", "dial", "datagram", "many", "events", "official")
SEGMENTS: Final = (1152, 1402, 2800, 4096, 8902, 16_384, 32_698, 65_428)
SWEEP: Final = "segment-"
DOCUMENT: Final = HERE.parent / "docs" / "PERFORMANCE.md"
BEGIN, END = "<!-- bench/report.py table -->\n", "\n<!-- end -->"

Bar = tuple[str, str, str, float]
"""What it is called, where the figure is in the result (a path of keys), how it must compare, with what."""

BARS: Final[dict[str, tuple[Bar, ...]]] = {
    "stream": (
        ("`stream` / uvloop TCP + TLS 1.3", "ratio uvloop-tls", ">=", 1.0),
        ("`stream` / C limit", "ratio c-limit", ">=", 0.5),
    ),
    "stream-1152": (
        ("`stream-1152` / uvloop TCP + TLS 1.3", "ratio uvloop-tls", ">=", 0.4),
        ("`stream-1152` / C limit", "ratio c-limit", ">=", 0.4),
    ),
    "stream-mtu1500": (
        ("`stream-mtu1500` / TCP + TLS over the same veth", "ratio uvloop-tls", ">=", 0.45),
        ("`stream-mtu1500` / C limit", "ratio c-limit", ">=", 0.4),
    ),
    "echo": (
        ("`echo` p50 / raw uvloop UDP, default settings", "ratio uvloop-udp", "<=", 1.5),
        ("the same with `busy_poll_us=0`", "variant_ratio ours-no-busy-poll uvloop-udp", "<=", 1.5),
    ),
    "official": (
        ("`stream` / official, one way", "ratio stream official", ">=", 20),
        ("`echo` p50 / official p50, default settings", "ratio echo official", "<=", 0.4),
        ("the same with `busy_poll_us=0`", "variant_ratio echo ours-no-busy-poll official", "<=", 0.4),
    ),
    "dial": (("`dial` p50 / `echo` p50", "dial_per_echo", "<=", 3),),
    "many": (("`many`: bytes per idle stream and end", "ours", "<=", 6144),),
    "events": (
        ("`events` / fnmatch", "ratio fnmatch", ">=", 100),
        ("`events` / the same bus in plain Python", "ratio python-cached", ">=", 2),
        ("`events`, topics never seen / fnmatch", "fresh ratio fnmatch", ">=", 10),
    ),
}


def load(name: str) -> dict[str, Any] | None:
    """A result that was measured, or None."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def measure(names: list[str]) -> None:
    """Runs the benchmarks one after the other; each result is a file."""
    RESULTS.mkdir(exist_ok=True)
    runs = {name: [name] for name in NAMES}
    runs |= {
        f"{SWEEP}{size}": ["stream", "--segment", str(size), "--peers", "c-limit", "--rounds", "5"] for size in SEGMENTS
    }
    for name, words in runs.items():
        if names and name not in names:
            continue
        print(f"== {name}", file=sys.stderr)
        command = [sys.executable, str(HERE / "e2e.py"), *words, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode == 0:
            (RESULTS / f"{name}.json").write_text(json.dumps(json.loads(done.stdout), indent=1) + "\n")


def table() -> str:
    """Two Markdown tables: every figure with its peers, and the bar."""
    lines = [where(), "", "| benchmark | unit | ours | peers: figure (ours / peer) |", "|---|---|---:|---|"]
    results = {name: result for name in NAMES if (result := load(name)) is not None}
    for name, result in results.items():
        if name == "official":
            for kind in ("stream", "echo"):
                parts = ("unit", "ours", "peers", "ratio", "variants", "variant_ratio")
                lines += _rows(f"official: {kind}", {**result, **{key: result[key][kind] for key in parts}})
        else:
            lines += _rows(name, result)
        if name == "events":
            lines += _rows("events: topics never seen", {**result, **result["fresh"]})
    lines += ["", "| bar | wanted | measured | |", "|---|---|---:|---|"]
    for name, bars in BARS.items():
        if name in results:
            lines += [_bar(results[name], bar) for bar in bars]
    if (stream := results.get("stream")) and stream["cpu_s_per_gb"].get("uvloop-tls"):
        spent = stream["cpu_s_per_gb"]
        ratio = {"cpu": spent["ours"] / spent["uvloop-tls"]}
        lines.append(_bar(ratio, ("CPU seconds per GB in `stream` / TCP + TLS", "cpu", "<=", 1.3)))
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The document with the tables of today between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


def where() -> str:
    """A sentence: when, on what, with which versions."""
    found = [result for name in NAMES if (result := load(name)) is not None]
    if not found:
        return "Nothing has been measured."
    machine, versions = found[0]["machine"], found[0]["versions"]
    foreign = [busy for result in found if (busy := result["machine"].get("foreign_cores")) is not None]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    date = machine["date"][:16].replace("T", " ")
    return (
        f"{date} UTC, {machine['cpu']}, {machine['cores']} cores, {machine['system']}; "
        f"{software}. Cores busy with something else during the rounds: {min(foreign):.2f} to {max(foreign):.2f}."
    )


VARIANTS: Final = {"ours-no-busy-poll": "`busy_poll_us=0`", "ours-callback": "by callback"}


def _rows(name: str, result: dict[str, Any]) -> list[str]:
    """A line for nodes as they are, and one for each variant measured beside them."""
    rows = [_row(f"`{name}`", result)]
    for variant, value in result.get("variants", {}).items():
        ratio = result["variant_ratio"][variant]
        rows.append(_row(f"`{name}`, {VARIANTS[variant]}", {**result, "ours": value, "ratio": ratio}))
    return rows


def _row(name: str, result: dict[str, Any]) -> str:
    cells = []
    for peer, value in result["peers"].items():
        if value is None:
            cells.append(f"{peer}: none ({result['reasons'].get(peer, 'not measured')})")
        else:
            cells.append(f"{peer} {_number(value)} ({result['ratio'][peer]:.3g})")
    return f"| {name} | {result['unit']} | {_number(result['ours'])} | {', '.join(cells)} |"


def _bar(result: dict[str, Any], bar: Bar) -> str:
    name, path, sign, limit = bar
    value: Any = result
    for key in path.split():
        value = value[key]
    wanted = f"{'at least' if sign == '>=' else 'at most'} {limit:g}"
    if value is None:
        return f"| {name} | {wanted} | - | not measured |"
    met = value >= limit if sign == ">=" else value <= limit
    return f"| {name} | {wanted} | {_number(value)} | {'met' if met else '**not met**'} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """The command line of the module docstring."""
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
    elif sys.argv[1:] == ["table"]:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
