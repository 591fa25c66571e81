"""The same by hand: a listener, and streams as they come."""

import pilot


async def main():
    node = pilot.Node(registry="127.0.0.1:9000", hostname="bob", public=True)
    async with node, await node.listen(1000) as listener:
        print("ready", listener.addr, listener.port, flush=True)
        async for stream in listener:
            async with stream:
                await stream.write(b"hi " + str(stream.remote_addr).encode())
            break


pilot.run(main())
