"""Stands in for Slack on this machine: takes what an incoming webhook takes, and prints the messages."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Channel(BaseHTTPRequestHandler):
    """Answers as Slack does: `ok`, or 400 with a reason."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            text = json.loads(content)["text"]
        except (ValueError, KeyError, TypeError):
            status, answer = 400, b"no_text"
        else:
            status, answer = 200, b"ok"
            print(f"# {text}", flush=True)  # noqa: T201 - this is the channel
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        """The path of the webhook is a secret, so requests are not logged."""


def main() -> None:
    """Serves on the port of the first argument, by default 8090; 0 picks one."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8090
    server = ThreadingHTTPServer(("127.0.0.1", port), Channel)
    print(f"# listening on http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
