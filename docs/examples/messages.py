"""Two nodes: a message and a file by the data exchange, with progress, and a subscription by the event stream."""

import pilot
from pilot.plugins.dataexchange import DataExchangeService
from pilot.plugins.eventstream import EventStreamService


async def message(alice, bob):
    with bob.service(DataExchangeService).messages() as inbox:
        answer = await alice.service(DataExchangeService).client.send_message("bob", "hello")
        print(answer.text, bool(answer))  # true: it has been stored
        received = await anext(inbox)
        print(received.sender, received.kind, received.text)


async def file(alice, bob):
    def progress(done, total):  # called again and again; a file that was cut off begins where it stopped
        if done in (0, total):
            print(f"{done:,} of {total:,} bytes")

    with bob.service(DataExchangeService).files() as arriving:
        client = alice.service(DataExchangeService).client
        sent = await client.send_file("bob", bytes(50_000), name="zeros.bin", progress=progress)  # or a Path
        received = await anext(arriving)
        print(received.name, received.size, received.sha256 == sent.sha256)


async def events(alice, bob):
    client = alice.service(EventStreamService).client
    with bob.events.subscribe("pubsub.subscribed") as subscribed:
        async with await client.subscribe("bob", "weather") as weather:  # "*", the default: every topic
            await anext(subscribed)  # a broker does not answer to subscriptions
            await client.publish("bob", "weather", "rain")  # or broadcast() of bob's own service
            async for event in weather:
                print(event.topic, event.text)
                break


async def main():
    services = ["dataexchange", "eventstream"]
    async with (
        pilot.Node(registry="127.0.0.1:9000", hostname="alice", services=services, public=True) as alice,
        pilot.Node(registry="127.0.0.1:9000", hostname="bob", services=services, state_dir="bob", public=True) as bob,
    ):
        await message(alice, bob)
        await file(alice, bob)
        await events(alice, bob)


pilot.run(main())
