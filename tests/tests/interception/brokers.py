"""Clients of message brokers, as anyone would write them: Kafka, RabbitMQ, NATS JetStream.

`brokers.py ROLE HOST PORT TEXT`: ends with an error if anything is not as it should be.
"""

import asyncio
import sys

role, host, port, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
place = f"{host}:{port}"
# More than any buffer on the way has.
large = (text * 40_000).encode()[:900_000]


async def kafka():
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=place)
    await admin.start()
    await admin.create_topics([NewTopic("orders", num_partitions=2, replication_factor=1)])
    consumers = [
        AIOKafkaConsumer(
            "orders",
            bootstrap_servers=place,
            group_id="billing",
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        for _ in range(2)
    ]
    for consumer in consumers:
        await consumer.start()
    producer = AIOKafkaProducer(
        bootstrap_servers=place, transactional_id="web-1", compression_type="gzip", max_request_size=2 << 20
    )
    await producer.start()
    sent = [text.encode() + str(number).encode() for number in range(200)]
    async with producer.transaction():
        for number, value in enumerate(sent):
            await producer.send("orders", value, partition=number % 2, headers=[("traceparent", b"x")])
        await producer.send_and_wait("orders", large, partition=0)
    try:
        async with producer.transaction():
            await producer.send_and_wait("orders", b"never", partition=1)
            raise InterruptedError
    except InterruptedError:
        pass
    got = []

    async def take(consumer):
        async for message in consumer:
            got.append(message.value)
            if len(got) == len(sent) + 1:
                return

    takers = [asyncio.create_task(take(consumer)) for consumer in consumers]
    done, pending = await asyncio.wait(takers, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert done, f"{len(got)} of {len(sent) + 1} came"
    for taker in pending:
        taker.cancel()
    assert sorted(got) == sorted([*sent, large]), len(got)
    for one in [*consumers, producer]:
        await one.stop()
    await admin.close()


def rabbitmq():
    import pika

    def connect():
        return pika.BlockingConnection(pika.ConnectionParameters(host, port, heartbeat=5, socket_timeout=10))

    publisher, consumer = connect(), connect()
    out, back = publisher.channel(), consumer.channel()
    out.confirm_delivery()
    out.exchange_declare("orders", exchange_type="topic")
    out.queue_declare("billing", durable=True)
    out.queue_bind("billing", "orders", "order.*.created")
    wanted = [*(text.encode() + str(number).encode() for number in range(100)), large]
    for body in wanted:
        properties = pika.BasicProperties(headers={"traceparent": "x"}, delivery_mode=2)
        out.basic_publish("orders", "order.eu.created", body, properties, mandatory=True)
    back.basic_qos(prefetch_count=10)
    got = []
    for method, properties, body in back.consume("billing", inactivity_timeout=10):
        assert method, f"{len(got)} of {len(wanted)} came"
        assert properties.headers == {"traceparent": "x"}
        got.append(body)
        back.basic_ack(method.delivery_tag)
        if len(got) == len(wanted):
            break
    back.cancel()
    assert got == wanted
    # Longer than two heartbeats without a word of ours.
    consumer.process_data_events(time_limit=12)
    assert consumer.is_open and back.queue_declare("billing", passive=True).method.message_count == 0
    publisher.close()
    consumer.close()


async def jetstream():
    import nats
    from nats.js.api import ConsumerConfig

    connection = await nats.connect(f"nats://{place}", allow_reconnect=False, connect_timeout=10)
    js = connection.jetstream(timeout=10)
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    wanted = [*(text.encode() + str(number).encode() for number in range(100)), large]
    for number, body in enumerate(wanted):
        acknowledged = await js.publish("orders.eu.created", body, headers={"traceparent": "x"})
        assert acknowledged.seq == number + 1
    puller = await js.pull_subscribe("orders.>", "billing", config=ConsumerConfig(ack_wait=10))
    got = []
    while len(got) < len(wanted):
        for message in await puller.fetch(20, timeout=10):
            assert message.headers == {"traceparent": "x"}
            got.append(message.data)
            await message.ack()
    assert got == wanted
    bucket = await js.create_key_value(bucket="registry")
    watcher = await bucket.watchall()
    await bucket.put("orders.1", text.encode())
    seen = [entry for entry in [await watcher.updates(timeout=10) for _ in range(2)] if entry]
    assert [(entry.key, entry.value) for entry in seen] == [("orders.1", text.encode())], seen
    await connection.close()


if role == "rabbitmq":
    rabbitmq()
else:
    asyncio.run({"kafka": kafka, "jetstream": jetstream}[role]())
print(role, "fine", flush=True)
