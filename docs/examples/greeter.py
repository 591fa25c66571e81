"""A plugin: `coreapi` and nothing else. It says hi to whoever opens a stream to port 1500."""

import asyncio

from pilot.coreapi import Deps, Service, recover_plugin


class Greeter(Service):
    name, order = "greeter", 150

    async def start(self, deps: Deps) -> None:
        self._listener = await deps.streams.listen(1500)  # open before start returns: nobody is refused in between
        self._task = asyncio.create_task(self._accept(deps))

    async def stop(self) -> None:
        await self._listener.close()  # ends the loop below
        await self._task

    async def _accept(self, deps: Deps) -> None:
        async for stream in self._listener:
            with recover_plugin("greeter", "accept", deps.events):  # a crash ends this stream, not the plugin
                async with stream:
                    await stream.write(b"hi\n")
