"""Two private nodes: strangers to each other until a handshake is approved, and again once trust is revoked."""

import pilot
from pilot.plugins.handshake import HandshakeService


async def hello(node, peer):
    try:
        async with await node.dial(peer, 7, timeout=3) as stream:
            await stream.write(b"hello")
            return await stream.readexactly(5)
    except (pilot.PilotError, TimeoutError):
        return b"out of reach"


async def main():
    async with (
        pilot.Node(registry="127.0.0.1:9000", services=["handshake"]) as alice,
        pilot.Node(registry="127.0.0.1:9000", services=["handshake"]) as bob,
    ):
        print(await hello(alice, bob.address))
        hers, his = alice.service(HandshakeService), bob.service(HandshakeService)
        with bob.events.subscribe("trust.*") as changes:
            await hers.request(bob.node_id, "it is alice")
            await his.refresh()  # a private node is asked through the registry's mailbox
            print([request.justification for request in his.pending()])
            await his.approve(alice.node_id)
            await hers.wait_for_trust(bob.node_id, timeout=30)
            print(await hello(alice, bob.address))
            await his.revoke(alice.node_id)
            print([(event.topic, event.payload.get("reason")) for event in changes.get_all()])
        print(await hello(alice, bob.address), hers.trusted(), his.trusted())


pilot.run(main())
