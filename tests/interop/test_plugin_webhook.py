"""The webhook beside that of the official daemon: the same requests, signatures, numbers, tries and keys of events."""

from __future__ import annotations

import functools
import hashlib
import hmac
from typing import Any

import pytest

from pilot.coreapi import InvalidValueError
from pilot.plugins.webhook import WebhookService
from tests.interop.ipc import eventually
from tests.interop.ours import our_node
from tests.plugins.webhook.receiver import Receiver, Request, receiver, status

SECRET = "a <secret> of 1 & 1"
HTTP_LIBRARY = {"user-agent", "accept-encoding", "accept", "connection", "host"}
"""Headers that say which library sent the request."""


def verified(hook: Receiver) -> list[Request]:
    """What came, every signature checked by the standard library over the very bytes."""
    for request in hook.requests:
        expected = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest()
        assert request.headers["x-pilot-signature-256"] == expected
    return hook.requests


def shapes(requests: list[Request]) -> dict[str, list[tuple[str, str]]]:
    """For each topic the keys of its data in their order, with the JSON type of the value."""
    return {
        request.json["event"]: [(key, type(value).__name__) for key, value in request.json.get("data", {}).items()]
        for request in requests
    }


async def test_both_post_the_same(start_daemon, rendezvous, namespace) -> None:
    """One daemon and one node of ours watch the same stream from its two ends, each posting to a receiver."""
    service = functools.partial(WebhookService.for_node, secret=SECRET)
    async with receiver(namespace.new_host()) as theirs, receiver(namespace.new_host()) as ours:
        flags = ("-webhook", theirs.url, "-webhook-secret", SECRET)
        daemon = await start_daemon("bob", public=True, flags=flags)
        async with our_node(namespace, rendezvous, services=[functools.partial(service, url=ours.url)]) as node:
            async with await node.dial(str(daemon.address), 7) as stream:
                await stream.write(b"ping")
                assert await stream.readexactly(4) == b"ping"
            async with await daemon.ipc() as client, await client.dial(str(node.address), 7) as stream:
                await stream.write(b"ping")
                assert await stream.readexactly(4) == b"ping"
            await node.send_datagram(str(daemon.address), 5000, b"x")
            await eventually(lambda: {"conn.fin", "data.datagram"} <= set(theirs.events()))
            await eventually(lambda: "conn.fin" in ours.events())
        assert ours.events()[0] == theirs.events()[0] == "node.registered"

    assert [request.json["event_id"] for request in verified(theirs)] == [*range(1, len(theirs.requests) + 1)]
    assert [request.json["event_id"] for request in verified(ours)] == [*range(1, len(ours.requests) + 1)]
    for request in theirs.requests + ours.requests:
        assert list(request.json)[:4] == ["event_id", "event", "node_id", "timestamp"]
        assert request.line == "POST /hook?a=1 HTTP/1.1"
    first, other = theirs.requests[0], ours.requests[0]
    assert set(first.headers) - HTTP_LIBRARY == set(other.headers) - HTTP_LIBRARY
    assert first.headers["content-type"] == other.headers["content-type"] == "application/json"

    expected, found = shapes(theirs.requests), shapes(ours.requests)
    common = set(expected) & set(found)
    assert {"node.registered", "tunnel.established", "conn.syn_received", "conn.established", "conn.fin"} <= common
    for topic in common:
        assert found[topic] == expected[topic], topic


async def test_the_official_tries_and_breaker_are_as_ours_are_tested(start_daemon, namespace) -> None:
    """Three tries at 0, 1 and 3 s: what `tests/plugins/webhook` holds ours to."""
    async with receiver(namespace.new_host(), lambda request: status(500)) as hook:
        await start_daemon("alice", public=True, expect=("webhook",), flags=("-webhook", hook.url))
        await hook.received(4)
    tries = [(request.json["event_id"], round(request.time - hook.requests[0].time)) for request in hook.requests[:4]]
    assert tries == [(1, 0), (1, 1), (1, 3), (2, 3)]
    assert "x-pilot-signature-256" not in hook.requests[0].headers


async def test_set_and_clear_at_run_time_on_both_sides(start_daemon, rendezvous, namespace) -> None:
    """Numbers start at 1 again with every URL, and the file holds it."""
    service_of: list[WebhookService] = []

    def service(facilities: Any) -> WebhookService:
        service_of.append(WebhookService.for_node(facilities))
        return service_of[0]

    async with receiver(namespace.new_host()) as first, receiver(namespace.new_host()) as second:
        daemon = await start_daemon("bob", public=True)
        async with our_node(namespace, rendezvous, services=[service]) as node:
            for hook in (first, second):
                await daemon.ctl("extras", "set-webhook", hook.url)
                assert (daemon.directory / ".pilot" / "webhook_url").read_text() == hook.url
                await service_of[0].set_url(hook.url)
                await node.send_datagram(str(daemon.address), 5000, b"x")
                async with await daemon.ipc() as client:
                    await client.send_datagram(str(node.address), 5000, b"x")
                await eventually(lambda hook=hook: hook.events().count("data.datagram") == 2)
            await daemon.ctl("extras", "clear-webhook")
            await service_of[0].clear_url()
            assert not (daemon.directory / ".pilot" / "webhook_url").exists()
            assert node.stats().counters["webhook_queue_dropped"] == 0
    for hook in (first, second):
        for node_id in {request.json["node_id"] for request in hook.requests}:
            numbers = [request.json["event_id"] for request in hook.requests if request.json["node_id"] == node_id]
            assert numbers == [*range(1, len(numbers) + 1)]


async def test_neither_takes_a_link_local_url(start_daemon, rendezvous, namespace) -> None:
    daemon = await start_daemon("bob", public=True)
    async with our_node(namespace, rendezvous, services=[WebhookService.for_node]) as node:
        webhook = node.service("webhook")
        assert isinstance(webhook, WebhookService)
        for url in ("http://169.254.169.254/latest", "http://[fe80::1]/", "http://metadata.google.internal/"):
            answer = await daemon.ctl("extras", "set-webhook", url)
            assert answer.get("applied") is False, url
            with pytest.raises(InvalidValueError):
                await webhook.set_url(url)
