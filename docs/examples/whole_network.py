"""A whole network in one program: the rendezvous server and two nodes, for tests and for trying things out."""

import pilot
from pilot.rendezvous import Rendezvous, RendezvousConfig


async def main():
    async with Rendezvous(RendezvousConfig(registry_port=0, beacon_port=0)) as server:
        where = {
            "registry": "{}:{}".format(*server.registry_address),
            "beacon": "{}:{}".format(*server.beacon_address),
        }
        alice, bob = (
            pilot.Node(**where, hostname="alice", public=True),
            pilot.Node(**where, hostname="bob", public=True),
        )
        async with alice, bob, await bob.listen(1000) as listener:
            stream = await alice.dial("bob", 1000)
            accepted = await listener.accept()
            await stream.write(b"across the tunnel")
            await stream.close()
            print(b"".join([chunk async for chunk in accepted]))


pilot.run(main())
