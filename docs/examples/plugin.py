"""A node with a plugin, and another that meets it."""

from greeter import Greeter

import pilot


async def main():
    async with (
        pilot.Node(registry="127.0.0.1:9000", hostname="bob", public=True, services=[Greeter()]) as bob,
        pilot.Node(registry="127.0.0.1:9000", public=True) as alice,
    ):
        async with await alice.dial("bob", 1500) as stream:
            print(await stream.readexactly(3))
        print(bob.service("greeter").name)


pilot.run(main())
