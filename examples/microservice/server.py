"""A microservice to deploy: answers with its version. Standard library only."""

from __future__ import annotations

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = os.environ.get("VERSION", "0.0.0")


class Handler(BaseHTTPRequestHandler):
    """`/health` says whether it works, `/` who it is."""

    def do_GET(self) -> None:
        known = {"/health": {"status": "ok"}, "/": {"service": "microservice", "version": VERSION}}
        body = json.dumps(known.get(self.path, {"error": "not found"})).encode()
        self.send_response(200 if self.path in known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serves until it is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
    sys.stdout.write(f"version {VERSION} listens on port {server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
