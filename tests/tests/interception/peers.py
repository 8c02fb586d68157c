"""Peers that Python has: gRPC, WebSocket, NATS and SMTP, as anyone would write them.

`peers.py ROLE HOST PORT TEXT`: a server runs until it is killed, a client ends with an error if anything is not as it should be.
"""

import asyncio
import socket
import sys
from concurrent import futures

role, host, port, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def grpc_server():
    import grpc

    class Echo(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method.endswith("/Chat"):
                return grpc.stream_stream_rpc_method_handler(lambda requests, context: requests)
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request)

    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Echo(),))
    server.add_insecure_port(place)
    server.start()
    server.wait_for_termination()


def grpc_client():
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        sent = text.encode()
        assert channel.unary_unary("/test.Echo/Say")(sent, timeout=10) == sent
        messages = [sent + str(number).encode() for number in range(50)]
        assert list(channel.stream_stream("/test.Echo/Chat")(iter(messages), timeout=10)) == messages


def ws_server():
    from websockets.sync.server import serve

    def echo(connection):
        for message in connection:
            connection.send(message)

    both = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    with serve(echo, sock=both) as server:
        server.serve_forever()


def ws_client():
    from websockets.sync.client import connect

    with connect(f"ws://{place}/", proxy=None, open_timeout=10) as connection:
        for message in [text, text.encode(), text * 5000]:
            connection.send(message)
            assert connection.recv(10) == message


def smtp_server():
    from aiosmtpd.controller import UnthreadedController
    from aiosmtpd.handlers import Debugging

    loop = asyncio.new_event_loop()
    # Without a name asyncio listens on all addresses of both families.
    UnthreadedController(Debugging(sys.stdout), hostname="", port=port, loop=loop).begin()
    loop.run_forever()


async def nats():
    # Debian's nats-server 2.9.10 loses, once in a hundred times and without any sidecar too, what is published right after a
    # subscription on another connection: who hears nothing starts over.
    for _ in range(5):
        if await published_is_heard():
            return
    raise AssertionError("nothing of what was published was heard, five times")


async def published_is_heard():
    import nats

    def client():
        return nats.connect(f"nats://{place}", allow_reconnect=False, connect_timeout=10)

    subscriber, publisher = await client(), await client()
    got, changed = {}, asyncio.Queue()
    for wildcard in ["orders.*.created", "orders.>", "orders.*.gone"]:
        got[wildcard] = []

        async def take(message, into=got[wildcard]):
            into.append((message.subject, message.data.decode()))
            changed.put_nowait(None)

        await subscriber.subscribe(wildcard, cb=take)
    await subscriber.flush()
    for subject in ["orders.eu.created", "orders.eu.berlin.created", "orders.us.created"]:
        await publisher.publish(subject, text.encode())
    await publisher.flush()
    eu, berlin, us = [(f"orders.{s}.created", text) for s in ["eu", "eu.berlin", "us"]]
    wanted = {"orders.*.created": [eu, us], "orders.>": [eu, berlin, us], "orders.*.gone": []}
    try:
        async with asyncio.timeout(3):
            while got != wanted:
                await changed.get()
    except TimeoutError:
        assert not got["orders.>"], got
    await publisher.close()
    await subscriber.close()
    return got == wanted


if role == "nats":
    asyncio.run(nats())
else:
    globals()[role]()
print(role, "fine", flush=True)
