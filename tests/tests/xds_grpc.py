"""A proxyless gRPC client of our control plane: two servers behind sidecars, calls through xds:///, shares printed.

With GRPC_CREDENTIALS=xds it speaks to them as the control plane says, and never in plain text if that says mTLS.
"""

import os
import sys
from concurrent import futures

import grpc

target, calls, servers = sys.argv[1], int(sys.argv[2]), [a.split("=") for a in sys.argv[3:]]


class Named(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name.encode()

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.name)


running = []
for name, address in servers:
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Named(name),))
    server.add_insecure_port(address)
    server.start()
    running.append(server)

counts = {}


def channel_to(target):
    if os.environ.get("GRPC_CREDENTIALS") == "xds":
        from grpc.experimental import insecure_channel_credentials

        return grpc.secure_channel(target, grpc.xds_channel_credentials(insecure_channel_credentials()))
    return grpc.insecure_channel(target)


with channel_to(target) as channel:
    call = channel.unary_unary("/test.Echo/Name")
    call(b"", wait_for_ready=True, timeout=20)
    for _ in range(calls):
        name = call(b"", timeout=10).decode()
        counts[name] = counts.get(name, 0) + 1
print(" ".join(f"{name}={count}" for name, count in sorted(counts.items())))
