"""Datagrams: one packet, no connection, no promise; and who a node is."""

import pilot


async def main():
    async with (
        pilot.Node(registry="127.0.0.1:9000", hostname="alice", public=True) as alice,
        pilot.Node(registry="127.0.0.1:9000", hostname="bob", public=True) as bob,
    ):
        inbox = bob.datagrams(4000)  # bounded; the oldest are dropped and counted in inbox.dropped
        await alice.send_datagram("bob", 4000, b"ping")
        async for datagram in inbox:
            print(datagram.source, datagram.data)
            break
        info = await alice.resolver.resolve(bob.node_id)  # a PeerInfo
        print(info.hostname, info.addr, info.public)
        print(f"{await alice.ping('bob') * 1e6:.0f} us")


pilot.run(main())
