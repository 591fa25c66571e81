"""A service on a virtual port: one task per stream, until the program is interrupted."""

import pilot


async def handle(stream: pilot.Stream) -> None:  # one task per stream; an exception ends this stream only
    async for chunk in stream:
        await stream.write(chunk)  # returns when all of it is in the send ring: this is the back-pressure


async def main():
    async with pilot.Node(registry="127.0.0.1:9000", hostname="bob", public=True) as node, node.serve(1000, handle):
        print("ready", node.address, flush=True)
        await node.closed()


pilot.run(main())
