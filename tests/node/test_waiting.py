"""Inboxes: order, cancellation that loses nothing, closing."""

from __future__ import annotations

import asyncio

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import ClosedError
from pilot.node import datagrams
from pilot.node.datagrams import DatagramInbox, Datagrams
from pilot.node.home import Home
from pilot.node.waiting import Inbox


def error() -> ClosedError:
    return ClosedError("closed")


async def test_items_come_out_in_order_to_waiting_takers() -> None:
    inbox: Inbox[int] = Inbox(asyncio.get_running_loop())
    takers = [asyncio.ensure_future(inbox.take()) for _ in range(3)]
    await asyncio.sleep(0)
    for item in range(4):
        inbox.put(item)
    assert await asyncio.gather(*takers) == [0, 1, 2]
    assert await inbox.take() == 3


async def test_taker_cancelled_when_woken_passes_the_item_on() -> None:
    inbox: Inbox[int] = Inbox(asyncio.get_running_loop())
    first, second = (asyncio.ensure_future(inbox.take()) for _ in range(2))
    await asyncio.sleep(0)
    inbox.put(1)
    first.cancel()
    assert await second == 1


async def test_close_ends_waiting_takers_and_returns_the_rest() -> None:
    inbox: Inbox[int] = Inbox(asyncio.get_running_loop())
    inbox.put(1)
    assert inbox.close(error) == [1]
    taker = asyncio.ensure_future(inbox.take())
    with pytest.raises(ClosedError):
        await taker
    assert inbox.closed


@pytest.fixture
async def home() -> Home:
    return Home(asyncio.get_running_loop(), lambda: None)


async def test_full_datagram_inbox_drops_the_oldest(home: Home) -> None:
    ports = Datagrams()
    inbox = DatagramInbox(4000, 2, home, ports)
    ports.add(inbox)
    for n in range(5):
        ports.deliver(Addr(0, 9), 1, 4000, bytes([n]))
    ports.deliver(Addr(0, 9), 1, 4001, b"elsewhere")
    assert [(await inbox.receive()).data for _ in range(2)] == [b"\3", b"\4"]
    assert inbox.dropped == 3


async def test_datagram_inbox_is_bounded_in_bytes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "INBOX_BYTES", 100)
    ports = Datagrams()
    inbox = DatagramInbox(4000, 1000, home, ports)
    ports.add(inbox)
    for n in range(5):
        ports.deliver(Addr(0, 9), 1, 4000, bytes([n]) * 50)
    assert inbox.dropped == 3
    assert (await inbox.receive()).data == b"\3" * 50


async def test_every_inbox_of_a_port_gets_a_copy_until_closed_or_forgotten(home: Home) -> None:
    ports = Datagrams()
    kept, closed, forgotten = (DatagramInbox(4000, 2, home, ports) for _ in range(3))
    for inbox in (kept, closed, forgotten):
        ports.add(inbox)
    closed.close()
    del forgotten, inbox
    ports.deliver(Addr(0, 9), 1, 4000, b"x")
    assert (await kept.receive()).source == Addr(0, 9)
    ports.close()
    assert [datagram async for datagram in kept] == []
    assert not ports._ports
