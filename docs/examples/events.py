"""What happens inside a node, as events: subscribing never waits, and a slow subscriber only loses its own events."""

import pilot


async def main():
    async with (
        pilot.Node(registry="127.0.0.1:9000", hostname="alice", public=True) as alice,
        pilot.Node(registry="127.0.0.1:9000", hostname="bob", public=True),
    ):
        with alice.events.subscribe("tunnel.*") as events:  # "*" is any run of characters; "" is every topic
            await alice.ping("bob")
            async for event in events:
                print(event.topic, event.node_id, event.payload["authenticated"])
                break


pilot.run(main())
