"""Where the list comes from, when, and what stays when that fails."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys

import httpx
import pytest

from pilot.coreapi import InvalidValueError, PilotError, TrustChecker
from pilot.plugins.handshake import HandshakeService, KeyedTrustChecker
from pilot.plugins.trustedagents import TrustedAgentsService, sources
from pilot.plugins.trustedagents.document import MAX_DOCUMENT_BYTES
from pilot.plugins.trustedagents.sources import UrlSource
from pilot.testing import run, simulate
from pilot.testing.coreapi import SERVICE_CHECKS
from tests.plugins.fakes import Network, eventually
from tests.plugins.trustedagents.test_document import VERIFIER, signed
from tests.plugins.webhook.receiver import receiver
from tests.plugins.webhook.test_service import certificate

URL = "https://lists.example/agents.json?secret=1"
ONE = signed('[{"node_id":7,"hostname":"desk"}]')


class Host:
    def __init__(self) -> None:
        self.random = random.Random(3)
        self.counters = {}
        self.add_counter = self.counters.__setitem__


def fetching(handler) -> UrlSource:
    return UrlSource(URL, transport=httpx.MockTransport(handler))


class Body(httpx.AsyncByteStream):
    """A body that is read from the network, as far as httpx can tell."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aiter__(self):
        for at in range(0, len(self.data), 65536):
            yield self.data[at : at + 65536]


def answered(status: int, data: bytes = b"", **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()}, stream=Body(data))


class ServerOf:
    """Answers in turn; remembers what was asked for."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


# ---- the service ----------------------------------------------------------------------------------------------------


async def test_a_file_is_read_at_the_start_and_kept_on_failure(tmp_path, caplog) -> None:
    path = tmp_path / "agents.json"
    path.write_bytes(ONE)
    host = Host()
    service = TrustedAgentsService.for_node(host, file=path, key=base64.b64encode(VERIFIER).decode())
    assert isinstance(service, TrustChecker)
    assert isinstance(service, KeyedTrustChecker)
    assert not service.is_trusted(7)
    await service.start(Network().deps(1, "trustedagents"))
    await eventually(lambda: service.is_trusted(7))
    assert service.is_trusted_with_key(7, b"") == ("desk", True)
    assert host.counters["trusted_agents"]() == 1
    for damage in (b"{", signed("[1]"), ONE.replace(b"7", b"8"), b"x" * (MAX_DOCUMENT_BYTES + 1)):
        path.write_bytes(damage)
        with pytest.raises(InvalidValueError):
            await service.refresh()
        assert service.is_trusted(7)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        await service.refresh()
    await service._refresh_logged(Network().deps(1, "trustedagents"))
    assert "stays as it is (1)" in caplog.text
    path.write_bytes(signed("[]"))
    assert await service.refresh() == 0
    assert not service.is_trusted(7)
    await service.stop()
    await service.stop()


def test_a_url_is_asked_within_thirty_seconds_and_then_every_hour() -> None:
    async def scenario():
        loop = asyncio.get_running_loop()
        service = TrustedAgentsService.for_node(Host(), url=URL, key=VERIFIER)
        start, times = loop.time(), []

        class Source:
            async def fetch(self) -> bytes:
                times.append(loop.time() - start)
                if len(times) == 2:
                    raise TimeoutError
                return ONE if len(times) < 3 else signed("[]")

        service._source = Source()
        await service.start(Network().deps(1, "trustedagents"))
        await asyncio.sleep(30)
        assert service.is_trusted(7)
        await asyncio.sleep(2 * 3600 * 1.1 - 600)
        assert len(times) == 2
        assert service.is_trusted(7)  # kept on failure
        await asyncio.sleep(1000)
        assert not service.is_trusted(7)
        assert 0 < times[0] < 30
        assert all(3600 <= gap <= 3960 for gap in (times[1] - times[0], times[2] - times[1]))
        await service.stop()
        await asyncio.sleep(9000)
        assert len(times) == 3

    run(scenario())


async def test_a_defect_in_a_refresh_does_not_end_the_refreshes(tmp_path) -> None:
    service = TrustedAgentsService.for_node(Host(), file=tmp_path / "none", key=VERIFIER)
    deps = Network().deps(1, "trustedagents")
    with deps.events.subscribe("plugin.*") as events:

        async def crash() -> bytes:
            raise ZeroDivisionError("a defect")

        service._source.fetch = crash
        await service.start(deps)
        await eventually(lambda: events.waiting)
        assert events.get_nowait().topic == "plugin.trustedagents.panic"
        assert not service._task.done()
        await service.stop()


async def test_without_a_source_nobody_is_on_the_list() -> None:
    service = TrustedAgentsService.for_node(Host())
    await service.start(Network().deps(1, "trustedagents"))
    assert service._task is None
    assert len(service.agents) == 0
    with pytest.raises(InvalidValueError, match="no source"):
        await service.refresh()
    await service.stop()


@pytest.mark.parametrize(
    "options",
    [
        {"file": "x"},
        {"key": VERIFIER},
        {"file": "x", "url": URL, "key": VERIFIER},
        {"file": "x", "key": b"short"},
        {"file": "x", "key": "?"},
        {"url": "http://lists.example/", "key": VERIFIER},
        {"url": "https://", "key": VERIFIER},
        {"url": "ftp://lists.example", "key": VERIFIER},
        {"url": "agents.json", "key": VERIFIER},
        {"url": "https://lists.example:port/", "key": VERIFIER},
    ],
)
def test_options_that_cannot_be(options) -> None:
    with pytest.raises(InvalidValueError):
        TrustedAgentsService.for_node(Host(), **options)


def test_httpx_is_needed_for_a_url_only(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    TrustedAgentsService.for_node(Host(), file="x", key=VERIFIER)
    with pytest.raises(PilotError, match="pip install 'pilot-asyncio\\[plugins\\]'"):
        TrustedAgentsService.for_node(Host(), url=URL, key=VERIFIER)


@pytest.mark.parametrize("check", SERVICE_CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check, tmp_path) -> None:
    (tmp_path / "agents.json").write_bytes(ONE)
    await check(
        lambda: TrustedAgentsService.for_node(Host(), file=tmp_path / "agents.json", key=VERIFIER), Network().deps(1)
    )


# ---- a URL ----------------------------------------------------------------------------------------------------------


async def test_what_is_asked() -> None:
    server = ServerOf(answered(200, ONE))
    assert await fetching(server).fetch() == ONE
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("GET", URL)
    assert request.headers["User-Agent"] == "pilot-daemon/trustedagents"
    assert request.headers["Accept-Encoding"] == "identity"


async def test_redirects_lead_to_https_only_and_not_for_ever() -> None:
    there = answered(302, location="https://other.example/list")
    server = ServerOf(there, answered(200, ONE))
    assert await fetching(server).fetch() == ONE
    assert str(server.requests[1].url) == "https://other.example/list"
    server = ServerOf(answered(302, location="http://lists.example/agents.json"))
    with pytest.raises(InvalidValueError, match="HTTPS only"):
        await fetching(server).fetch()
    assert len(server.requests) == 1
    server = ServerOf(*(answered(302, location=URL) for _ in range(6)))
    with pytest.raises(PilotError, match="more than 5 times"):
        await fetching(server).fetch()
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda: answered(404), "answered 404"),
        (lambda: answered(204), "answered 204"),
        (lambda: answered(304), "answered 304"),
        (lambda: answered(500), "answered 500"),
        (lambda: answered(200, b"x" * (MAX_DOCUMENT_BYTES + 1)), "more than 1048576 bytes"),
        (lambda: answered(200, b"x", content_encoding="gzip"), "compressed"),
        (lambda: httpx.ConnectError("refused"), "ConnectError"),
        (lambda: httpx.ReadTimeout("slow"), "ReadTimeout"),
        (lambda: httpx.RemoteProtocolError("nonsense"), "RemoteProtocolError"),
    ],
)
async def test_answers_that_bring_no_list(answer, problem) -> None:
    with pytest.raises(PilotError, match=problem) as failure:
        await fetching(ServerOf(answer())).fetch()
    assert "https://lists.example" in str(failure.value)
    assert "secret" not in str(failure.value)


async def test_thirty_seconds_are_enough(monkeypatch) -> None:
    monkeypatch.setattr(sources, "FETCH_SECONDS", 0.02)

    async def never(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    with pytest.raises(TimeoutError):
        await fetching(never).fetch()


async def test_a_list_over_real_tls_with_an_authority_of_ones_own(tmp_path) -> None:
    server, client = certificate(tmp_path, "localhost")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ONE), ONE)
    async with receiver(tls=server, answer=lambda request: answer) as web:
        url = f"https://localhost:{web.port}/agents.json"
        service = TrustedAgentsService.for_node(Host(), url=url, key=VERIFIER, tls=client)
        assert await service.refresh() == 1
        assert web.requests[0].line == "GET /agents.json HTTP/1.1"
        stranger = TrustedAgentsService.for_node(Host(), url=url, key=VERIFIER)
        with pytest.raises(PilotError, match="certificate"):
            await stranger.refresh()


# ---- with handshakes ------------------------------------------------------------------------------------------------


def test_who_is_on_the_list_is_trusted_unasked() -> None:
    async def scenario(world):
        alice = world.machine("alice", services=[HandshakeService.for_node])
        mallory = world.machine("mallory", services=[HandshakeService.for_node])
        await alice.start()
        await mallory.start()
        agents = json.dumps([{"node_id": alice.node.node_id, "hostname": "alices-desk"}], separators=(",", ":"))

        class Source:
            async def fetch(self) -> bytes:
                return signed(agents)

        def listed(facilities):
            service = TrustedAgentsService.for_node(facilities, url=URL, key=VERIFIER)
            service._source = Source()
            return service

        bob = world.machine("bob", services=[listed, HandshakeService.for_node])
        await bob.start()
        await asyncio.sleep(40)
        with bob.node.events.subscribe("handshake.*") as events:
            for asking in (alice, mallory):
                await asking.node.service("handshake").request(bob.node.node_id)
            assert await alice.node.service("handshake").wait_for_trust(bob.node.node_id, 10)
            told = {event.topic: event.payload for event in events.get_all()}
        assert told["handshake.auto_approved"] == {
            "peer_node_id": alice.node.node_id,
            "reason": "trusted_agent",
            "agent": "alices-desk",
        }
        assert [request.node_id for request in bob.node.service("handshake").pending()] == [mallory.node.node_id]
        assert bob.node.stats().counters["trusted_agents"] == 1

    simulate(1, scenario)
