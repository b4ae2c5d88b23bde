"""How the stand-ins for provider plugins are served: as the engine starts plugins, and ends them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent import futures

import grpc  # type: ignore[import-untyped]
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import provider_pb2_grpc


def serve(servicer: provider_pb2_grpc.ResourceProviderServicer, threads: int) -> None:
    """Tells the engine the port on standard output and serves until a signal, or until the engine is gone."""
    parent = os.getppid()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    server = grpc.server(futures.ThreadPoolExecutor(threads), options=_GRPC_CHANNEL_OPTIONS)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    while not ended.wait(0.5) and os.getppid() == parent:
        pass
    server.stop(grace=1).wait()
    os._exit(0)
