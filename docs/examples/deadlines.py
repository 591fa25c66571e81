"""Deadlines, cancellation and errors: what can end a wait, and what is left behind."""

import asyncio

import pilot


async def main():
    loop = asyncio.get_running_loop()
    async with pilot.Node(registry="127.0.0.1:9000", public=True) as node:
        async with await node.dial("bob", 7) as stream:
            stream.set_read_deadline(loop.time() + 0.2)  # absolute; None removes it; moving it wakes a waiting reader
            try:
                await stream.read()
            except TimeoutError as error:
                print(error)
            stream.set_read_deadline(None)
            try:
                async with asyncio.timeout(0.1):
                    await stream.readexactly(4)  # cancelling a read loses no byte
            except TimeoutError:
                await stream.write(b"late")
                print(await stream.readexactly(4))
        try:
            await node.dial("carol", 80)
        except pilot.PeerNotFoundError as error:
            print(error)  # no node named 'carol' at registry 127.0.0.1:9000
        try:
            await node.dial("bob", 80)
        except pilot.RefusedError as error:  # is a ConnectionRefusedError
            print(error)


pilot.run(main())
