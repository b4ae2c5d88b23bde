"""The stand-in for Slack answers as an incoming webhook does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import requests

SERVER = Path(__file__).parents[3] / "examples" / "slack" / "server.py"


def test_it_prints_messages_and_nothing_of_the_address() -> None:
    with subprocess.Popen([sys.executable, str(SERVER), "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with requests.Session() as session:
            session.trust_env = False
            wrong = session.post(f"{address}/services/T0/B0/secret-path", json={}, timeout=10)
            right = session.post(f"{address}/services/T0/B0/secret-path", json={"text": "hello"}, timeout=10)
        server.terminate()
        printed = server.stdout.read()
    assert (wrong.status_code, wrong.text) == (400, "no_text")
    assert (right.status_code, right.text) == (200, "ok")
    assert printed == "# hello\n"
