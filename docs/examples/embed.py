"""A node inside your program: start it, say hello to bob's echo service, stop it."""

import pilot


async def main():
    async with pilot.Node(registry="127.0.0.1:9000", hostname="alice", state_dir="alice", public=True) as node:
        print(node.address)  # 0:0000.0000.0001
        async with await node.dial("bob", 7, timeout=5) as stream:  # hostname, "0:0000.0000.0002", or Addr
            await stream.write(b"hello")
            print(await stream.read())  # some bytes; b"" only at the end


pilot.run(main())  # uvloop where there is one, asyncio elsewhere
