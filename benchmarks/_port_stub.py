"""The cheapest Port that a listener can report to: it takes everything and counts terminal statuses.

`python -m benchmarks._port_stub <port>`; `GET /ended` answers the number of runs that have ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import ClassVar

_TOKEN = b'{"ok":true,"accessToken":"token","expiresIn":3600,"tokenType":"Bearer"}'
_TAKEN = b'{"ok":true,"run":{"status":"SUCCESS"},"runLog":{},"entity":{}}'


class PortStub(asyncio.Protocol):
    """One connection."""

    ended: ClassVar[set[bytes]] = set()

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, blank, rest = self._buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            _, _, length = head.lower().partition(b"content-length: ")
            size = int(length.split(b"\r\n", 1)[0] or 0)
            if len(rest) < size:
                return
            body, self._buffer = rest[:size], rest[size:]
            answer = self._answer(head.split(b" ", 2), body)
            self._transport.write(  # type: ignore[attr-defined]
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(answer), answer)
            )

    def _answer(self, request: list[bytes], body: bytes) -> bytes:
        method, path = request[0], request[1]
        if path == b"/ended":
            return json.dumps(len(self.ended)).encode()
        if path.startswith(b"/v1/auth"):
            return _TOKEN
        if method == b"PATCH" and b'"SUCCESS"' in body:
            self.ended.add(path.partition(b"?")[0])
        return _TAKEN


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(PortStub, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
