"""Streams read by callbacks, without a task and without a copy: an echo, and a count of the bytes of one stream."""

import asyncio

import pilot


def count(stream: pilot.Stream, over: asyncio.Future[str]) -> None:
    total = 0

    def received(view: memoryview) -> None:  # the bytes as they lie in the receive ring; the view dies with the call
        nonlocal total
        total += len(view)

    def ended(error: Exception | None) -> None:  # None: the peer has finished; else what a read would raise
        over.set_result(f"{total} bytes, {error or 'in order'}")

    stream.set_receiver(received, ended=ended)


async def main():
    over = asyncio.get_running_loop().create_future()
    async with (
        pilot.Node(registry="127.0.0.1:9000", hostname="bob", public=True) as node,
        await node.listen(1000) as echo,
        await node.listen(1001) as sink,
    ):
        print("ready", node.address, flush=True)
        stream = await echo.accept()
        # What the send ring has no room for stays in the receive ring: that is the back-pressure.
        stream.set_receiver(stream.write_nowait, writable=stream.resume_reading)
        count(await sink.accept(), over)
        print(await over)


pilot.run(main())
