"""The webhook service and its HTTP side against a real server on loopback."""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pilot.coreapi import Addr, Deps, InvalidValueError, PilotError, Service, ServiceRegistry
from pilot.plugins.webhook import WebhookService
from pilot.plugins.webhook.body import signature
from pilot.plugins.webhook.poster import HttpPoster, check_url
from tests.plugins.fakes import Network
from tests.plugins.webhook.receiver import Receiver, Request, receiver, status


@dataclass
class Facilities:
    """What the service takes from a node."""

    state_dir: Path | None
    counters: dict[str, Any] = field(default_factory=dict)

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    def add_counter(self, name: str, read: Any) -> None:
        self.counters[name] = read


@pytest.fixture
def deps() -> Deps:
    return Network().deps(7, "webhook")


async def test_it_is_a_service_and_runs_under_a_registry(deps: Deps) -> None:
    async with receiver() as hook:
        service = WebhookService(url=hook.url, secret="s")
        assert isinstance(service, Service)
        assert (service.name, service.order) == ("webhook", 90)
        registry = ServiceRegistry()
        registry.register(service)
        await registry.start_all(deps)
        deps.events.publish("node.registered", {"address": str(Addr(0, 7)), "endpoint": "192.0.2.1:4000"})
        (first,) = await hook.received(1)
        deps.events.publish("daemon.shutting_down", {"uptime_seconds": 1})
        await registry.stop_all()
        assert hook.events() == ["node.registered", "daemon.shutting_down"]
    assert first.line == "POST /hook?a=1 HTTP/1.1"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["host"] == f"127.0.0.1:{hook.port}"
    assert first.headers["x-pilot-signature-256"] == signature(b"s", first.body)
    assert first.json["event_id"] == 1


async def test_url_is_set_changed_kept_and_cleared_at_run_time(deps: Deps, tmp_path: Path) -> None:
    facilities = Facilities(tmp_path)
    service = WebhookService.for_node(facilities)
    await service.start(deps)
    assert service.url == ""
    deps.events.publish("early", {})
    async with receiver() as first, receiver() as second:
        await service.set_url(first.url)
        file = tmp_path / "webhook_url"
        assert file.read_text() == first.url == service.url
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        deps.events.publish("one", {})
        await first.received(1)
        await service.set_url(second.url)
        deps.events.publish("two", {})
        await second.received(1)
        assert [(r.json["event"], r.json["event_id"]) for r in first.requests + second.requests] == [
            ("one", 1),
            ("two", 1),
        ]
        await service.stop()
        assert WebhookService(state_dir=tmp_path).url == ""

        again = WebhookService(state_dir=tmp_path)
        await again.start(deps)
        assert again.url == second.url
        deps.events.publish("three", {})
        await second.received(2)
        await again.clear_url()
        assert not file.exists()
        deps.events.publish("four", {})
        await again.clear_url()
        await again.stop()
        assert second.events() == ["two", "three"]
    assert facilities.counters["webhook_queue_dropped"]() == facilities.counters["webhook_circuit_skips"]() == 0
    assert service.stats().delivered == 2


async def test_a_given_url_wins_over_the_saved_one_and_survives_a_restart(deps: Deps, tmp_path: Path) -> None:
    (tmp_path / "webhook_url").write_text("http://127.0.0.1:9/saved")
    service = WebhookService(url="http://127.0.0.1:9/given", state_dir=tmp_path)
    for _ in range(2):
        await service.start(deps)
        assert service.url == "http://127.0.0.1:9/given"
        await service.stop()
    await service.clear_url()
    await service.start(deps)
    assert service.url == ""
    await service.stop()


@pytest.mark.parametrize("content", [b"http://169.254.169.254/", b"ftp://x", b"\xff\xfe", b"x" * 10_000])
async def test_an_unusable_saved_url_is_not_used(
    deps: Deps, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "webhook_url").write_bytes(content)
    service = WebhookService(state_dir=tmp_path)
    with caplog.at_level(logging.ERROR, "pilot.plugin.webhook"):
        await service.start(deps)
    assert service.url == ""
    assert "is not used" in caplog.text
    await service.stop()


async def test_a_refused_url_changes_nothing(deps: Deps, tmp_path: Path) -> None:
    async with receiver() as hook:
        service = WebhookService(url=hook.url, state_dir=tmp_path)
        await service.start(deps)
        with pytest.raises(InvalidValueError, match="link-local"):
            await service.set_url("http://169.254.169.254/latest")
        (tmp_path / "webhook_url").mkdir()
        with pytest.raises(PilotError, match="cannot be kept"):
            await service.set_url("http://127.0.0.1:9/")
        deps.events.publish("still", {})
        await hook.received(1)
        await service.stop()
    with pytest.raises(InvalidValueError):
        WebhookService(url="gopher://x")


async def test_without_httpx_the_error_says_what_to_install(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    idle = WebhookService()
    await idle.start(deps)
    with pytest.raises(PilotError, match=r"pip install 'pilot-asyncio\[plugins\]'"):
        await idle.set_url("http://127.0.0.1:9/")
    await idle.stop()
    with pytest.raises(PilotError, match="httpx"):
        WebhookService(url="http://127.0.0.1:9/")


async def test_a_failing_receiver_stops_nobody(deps: Deps) -> None:
    service = WebhookService(url="http://127.0.0.1:9/")
    await service.start(deps)
    deps.events.publish("lost", {})
    stopping = asyncio.create_task(service.stop())
    await asyncio.sleep(0.05)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert service.stats().failed == 1


# ------------------------------------------------------------------------------------------------- HTTP


class Resolver:
    """Answers of DNS, one after the other; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def __call__(self, host: str, port: int) -> list[str]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def post(hook: Receiver, host: str, lookup: Resolver, tls: ssl.SSLContext | None = None) -> HttpPoster:
    scheme = "https" if tls else "http"
    return HttpPoster(check_url(f"{scheme}://{host}:{hook.port}/p"), lookup=lookup, tls=tls)


async def test_the_connection_goes_to_the_checked_address_under_the_given_name() -> None:
    async with receiver() as hook:
        poster = post(hook, "hook.example", Resolver(["127.0.0.1"]))
        assert [await poster.post(b"{}", {}) for _ in range(2)] == [204, 204]
        assert {request.headers["host"] for request in hook.requests} == {f"hook.example:{hook.port}"}
        assert "/p" not in repr(poster)
        await poster.close()


async def test_a_name_that_moves_to_a_link_local_address_is_refused() -> None:
    async with receiver() as hook:
        poster = post(hook, "rebind.example", Resolver(["127.0.0.1"], ["169.254.169.254"]))
        assert await poster.post(b"{}", {}) == 204
        with pytest.raises(InvalidValueError, match=r"169\.254\.169\.254"):
            await poster.post(b"{}", {})
        assert len(hook.requests) == 1
        await poster.close()


async def test_redirects_are_not_followed(deps: Deps) -> None:
    async with receiver() as inner:

        def redirect(request: Request) -> bytes:
            return status(307, f"Location: {inner.url}")

        async with receiver(answer=redirect) as hook:
            service = WebhookService(url=hook.url)
            await service.start(deps)
            deps.events.publish("a", {})
            deps.events.publish("b", {})
            await hook.received(2)
            await service.stop()
        assert hook.events() == ["a", "b"]
        assert inner.requests == []
        assert service.stats().failed == 2


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as proxy, receiver() as hook:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        poster = post(hook, "hook.example", Resolver(["127.0.0.1"]))
        assert await poster.post(b"{}", {}) == 204
        assert (len(proxy.requests), len(hook.requests)) == (0, 1)
        await poster.close()


async def test_the_next_address_is_tried_where_one_refuses() -> None:
    async with receiver() as hook:
        poster = post(hook, "two.example", Resolver(["127.0.0.2", "127.0.0.1"]))
        assert await poster.post(b"{}", {}) == 204
        await poster.close()
        poster = post(hook, "none.example", Resolver(["127.0.0.2", "127.0.0.3"]))
        with pytest.raises(ConnectionError):
            await poster.post(b"{}", {})
        await poster.close()


ANSWERS = {
    "endless body": (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(300_000), 200),
    "body that never comes": (b"HTTP/1.1 203 OK\r\nContent-Length: 99\r\n\r\nx", 203),
    "a bomb is not unpacked": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nbad", 200),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_bodies_of_answers_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.plugins.webhook.poster.BODY_SECONDS", 0.1)
    answer, code = ANSWERS[name]
    async with receiver(answer=lambda request: answer) as hook:
        poster = post(hook, "hook.example", Resolver(["127.0.0.1"]))
        assert await poster.post(b"{}", {}) == code
        await poster.close()


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200\r\nA B\r\n\r\n", b""])
async def test_what_is_no_http_is_a_failed_try(answer: bytes) -> None:
    async with receiver(answer=lambda request: answer) as hook:
        poster = post(hook, "hook.example", Resolver(["127.0.0.1"]))
        hang_up = asyncio.get_running_loop().call_later(0.1, hook.close_connections)
        with pytest.raises(ConnectionError):
            await poster.post(b"{}", {})
        hang_up.cancel()
        await poster.close()


async def test_silence_ends_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.plugins.webhook.poster.TRY_SECONDS", 0.1)
    async with receiver(answer=lambda request: None) as hook:
        poster = post(hook, "hook.example", Resolver(["127.0.0.1"]))
        with pytest.raises(OSError):
            await poster.post(b"{}", {})
        await poster.close()


def certificate(directory: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Server and client context around a self-signed certificate for `name`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = directory / "pem"
    pem.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


async def test_tls_asks_for_and_verifies_the_name_not_the_pinned_address(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "hook.example")
    names: list[str | None] = []
    server.sni_callback = lambda _, name, __: names.append(name)  # type: ignore[assignment]
    async with receiver(tls=server) as hook:
        poster = post(hook, "hook.example", Resolver(["127.0.0.1"]), client)
        assert await poster.post(b"{}", {}) == 204
        await poster.close()
        other = post(hook, "other.example", Resolver(["127.0.0.1"]), client)
        with pytest.raises(ConnectionError, match="verif"):
            await other.post(b"{}", {})
        await other.close()
    assert names == ["hook.example", "other.example"]
