"""Requests by the million against the receiver: `python -m tests.fuzz --cases 1000000 [--seed 1]`.

Mutates valid requests, in part signed anew after the mutation, so that both sides of the signature are met. For each
case it is checked, by a verifier that shares no code with the listener's:

- nothing is accepted, claimed or started without a valid signature;
- no answer is a 5xx, every answer is JSON, nothing raises.

Some of the cases go to the other parsers: manifest, configuration, encrypted inputs, input schemas.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from port_webhook_handlers.port.encryption import DecryptionError, decrypt_aes256_gcm, encrypt_aes256_gcm
from port_webhook_handlers.port.payload import LEGACY, RUN_ID_HEADER, Payload
from port_webhook_handlers.runtime import config, manifest
from port_webhook_handlers.runtime.claims import Answer, Claim
from port_webhook_handlers.runtime.config import ConfigError, Limits
from port_webhook_handlers.runtime.inputs import InputsValidator
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Manifest, ManifestError, Route
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.receiver import Invocation, Receiver

SECRETS = [b"first-secret-0123456789-0123456789", b"second-secret-0123456789-012345678"]
NOW = 1_700_000_000.0
STAMP = b"1700000000"

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 50, "pattern": "^[a-z ]*$"},
        "count": {"type": "integer", "minimum": 1},
        "list": {"type": "array", "items": {"type": "number"}, "maxItems": 5},
        "sealed": {"type": "string"},
    },
    "required": ["text"],
    "additionalProperties": False,
}

_TOKENS = [
    b"NaN", b"-Infinity", b"1e2", b"1e999", b"-0", b"01", b"1_700", b"+17", b"\\u0031", b"\\ud800", b"\\udc00\\ud800",
    b'"runId":"r_2",', b'"port_context":{"action":"work","runId":"r_3"},', b'{"a":1,"a":2}', b"[" * 100, b'{"a":' * 80,
    b"9" * 400, b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x00", b"\n", b"\r\n", b"/*x*/", b"'", b"null",
    b"true", b'""', b"{}", b"[]", "１７".encode(), b'"__proto__":{},', b"1" * 309, b"1." + b"0" * 400, b'"\t"',
]  # fmt: skip
_STAMPS = [
    b"", b"0", b"+1700000000", b"-1700000000", b"1_700_000_000", "１７００００００００".encode(), b"1700000000\n",
    b" 1700000000", b"1700000000 ", b"1.7e9", b"1700000000.0", b"0x6553F100", b"1700000000000", b"17000000000",
    b"9" * 5000, b"NaN", b"inf", b"1699999699", b"1700000301", b"1700000300", b"170000000", b"\xb2\xb2", b"1699999700000",
]  # fmt: skip
_PATHS = [
    "/webhooks/work", "/webhooks/ask", "/webhooks/agent", "/webhooks/put", "/webhooks/foreign", "/webhooks/missing",
    "/webhooks/_verification", "/webhooks/", "/webhooks", "/", "", "/health", "/webhooks/%FF", "/webhooks/%77ork",
    "/webhooks/work" + "/", "/webhooks//work", "/webhooks/../work", "/webhooks/work%00", "*", "http://x/webhooks/work",
]  # fmt: skip
_METHODS = ["POST", "GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "", "post"]
_NAMES = [b"x-port-signature", b"x-port-timestamp", b"webhook-signature", b"host", b"x-port-signature "]


def _route(name: str, **changes: Any) -> Route:
    values = {
        "name": name,
        "kind": "action",
        "action": name,
        "handler": f"app:{name}",
        "inputs_schema": _SCHEMA,
    }
    return Route(**{**values, "timeout_seconds": 5, **changes})


ROUTES = {
    route.name: route
    for route in (
        _route("work"),
        _route("ask", mode="sync"),
        _route("agent", scheme="official-agent"),
        _route("put", method="PUT"),
        _route("foreign", payload=LEGACY),
        _route("header", payload=RUN_ID_HEADER),
        _route("empty", payload=Payload(run_id="header:RUN_ID", empty_body=True), inputs_schema={}),
        _route("sealed", encrypted_inputs=("sealed",)),
        _route("on_change", kind="automation"),
    )
}


class Claims:
    """A ledger in memory that forgets, so that a million cases fit."""

    def __init__(self) -> None:
        self.taken: dict[str, tuple[str, bytes]] = {}
        self.count = 0

    async def claim(
        self, run_id: str, route: str, mode: str, body_hash: bytes, payload: bytes, **_: Any
    ) -> Claim:
        self.count += 1
        if len(self.taken) > 1000:
            self.taken.clear()
        known = self.taken.get(run_id)
        self.taken.setdefault(run_id, (route, body_hash))
        return Claim(known is None, known in (None, (route, body_hash)), "done", None, Answer(200, {}), 1)

    async def lookup(self, run_id: str, route: str, body_hash: bytes) -> Claim | None:
        return None


class Executor:
    """Counts what is started."""

    def __init__(self) -> None:
        self.count = 0

    def accepted(self, run_id: str, route: str) -> None:
        self.count += 1

    def refused(self, run_id: str) -> None:
        return

    async def answer(self, invocation: Invocation, seconds: float) -> Answer:
        self.count += 1
        return Answer(200, {"ok": True})

    async def fail_now(self, run_id: str, summary: str) -> None:
        raise AssertionError("everything can be stored")


class Secrets:
    """Two active signing secrets."""

    def signing(self, now: float) -> list[bytes]:
        return SECRETS

    def refresh(self) -> bool:
        return False


@dataclass
class Case:
    """One request."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.headers} {self.body[:500]!r}"


@dataclass
class Report:
    """What came of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    valid: int = 0


def _signature(secret: bytes, stamp: bytes, text: bytes) -> bytes:
    return b"v1," + base64.b64encode(hmac.new(secret, stamp + b"." + text, hashlib.sha256).digest())


def _is_signed(case: Case) -> bool:
    """Whether Port, or its agent, could have sent these bytes now. Written from the protocol alone."""
    found = {
        name: [value for key, value in case.headers if key == name]
        for name in (b"x-port-signature", b"x-port-timestamp")
    }
    if any(len(values) != 1 for values in found.values()):
        return False
    (signature,), (stamp,) = found.values()
    if not re.fullmatch(rb"[0-9]{10,13}", stamp):
        return False
    seconds = int(stamp) / (1000 if int(stamp) >= 10**11 else 1)
    if abs(seconds - NOW) > 300:
        return False
    # A request without a body may be signed over an empty object instead.
    texts = [case.body or b"{}", case.body]
    try:
        # The agent signs a compact form of what it sends.
        texts.append(json.dumps(json.loads(case.body), separators=(",", ":")).encode())
    except (ValueError, RecursionError):
        pass
    return any(signature == _signature(secret, stamp, text) for secret in SECRETS for text in texts)


class Fuzzer:
    """Makes and judges cases."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.claims = Claims()
        self.executor = Executor()
        self.report = Report()
        self._null = os.open(os.devnull, os.O_WRONLY)
        self.receiver = Receiver(
            Manifest({}, ROUTES),
            "sha256:0",
            "nonce",
            Secrets(),
            self.claims,
            self.executor,
            Limits(),
            Log(self._null),
            Metrics(),
            clock=lambda: NOW,
            confirm=self._confirm,
        )
        self._sealed = encrypt_aes256_gcm(b"secret", SECRETS[0].decode())
        self._manifest = Manifest({"a.py": "0" * 64}, ROUTES).dumps()
        self._config = json.dumps(
            {
                "bundle": "/b",
                "secrets_file": "/s",
                "secrets_key_file": "/k",
                "port_base_url": "https://x",
                "limits": {"max_queued": 5},
            }
        ).encode()
        self._validator = InputsValidator(_SCHEMA)

    async def _confirm(self, run_id: str, action: str) -> bool:
        assert action in ("header", "empty"), action
        return self.random.random() < 0.8

    def close(self) -> None:
        """Closes the log."""
        os.close(self._null)

    async def run(self, cases: int) -> Report:
        """Runs cases; raises AssertionError with the first that is not as it must be."""
        for _ in range(cases):
            if self.random.random() < 0.1:
                self._parse()
            else:
                await self._request(self._case())
        return self.report

    def _case(self) -> Case:
        choose = self.random
        name = choose.choice([*ROUTES, "missing", "_verification"])
        run_id = choose.choice(["r_0123456789abcdef", f"r_{choose.randrange(10**9)}"])
        content: dict[str, Any] = {
            "port_context": {"action": name, "runId": run_id},
            "action": name,
            "context": {"runId": run_id},
            "payload": {"properties": {"text": "some words"}},
            "inputs": {"text": "some words", "count": 3, "list": [1, 2.5]},
            "entity": {"identifier": "Zoë"},
            "trigger": {},
        }
        if name == "header":
            content = {**content["inputs"], "port_context": {"runId": run_id}}
        body = json.dumps(content, ensure_ascii=choose.random() < 0.5).encode()
        if name == "empty" and choose.random() < 0.7:
            body = b""
        if choose.random() < 0.6:
            body = self._mutated(body)
        text = body
        if name == "agent":
            try:
                text = json.dumps(json.loads(body), separators=(",", ":")).encode()
            except (ValueError, RecursionError):
                text = body
        stamp = choose.choice(_STAMPS) if choose.random() < 0.15 else STAMP
        signature = _signature(choose.choice(SECRETS), stamp, text)
        if choose.random() < 0.4:
            signature = self._forged(signature, stamp, text)
        headers = [(b"x-port-timestamp", stamp), (b"x-port-signature", signature)]
        if name in ("header", "empty"):
            headers.append((b"run_id", run_id.encode()))
        if choose.random() < 0.15:
            self._shuffle(headers)
        if choose.random() < 0.2:
            body = self._mutated(body)
        path = choose.choice(_PATHS) if choose.random() < 0.2 else f"/webhooks/{name}"
        usual = "PUT" if name == "put" else "POST"
        method = choose.choice(_METHODS) if choose.random() < 0.1 else usual
        return Case(method, path, headers, body)

    def _forged(self, signature: bytes, stamp: bytes, text: bytes) -> bytes:
        return self.random.choice(
            [
                b"",
                signature.lower(),
                signature + b"\n",
                b" " + signature,
                signature + b" " + signature,
                signature + b"," + signature,
                signature[3:],
                signature.replace(b"v1,", b"v1a,"),
                signature.replace(b"v1,", b"v2,"),
                signature.replace(b"=", b""),
                signature.replace(b"+", b"-").replace(b"/", b"_"),
                b"v1," + base64.b64encode(b""),
                b"v1," + base64.b64encode(bytes(32)),
                b"v1," + hmac.new(SECRETS[0], stamp + b"." + text, hashlib.sha256).hexdigest().encode(),
                _signature(b"", stamp, text),
                _signature(b"another", stamp, text),
                _signature(SECRETS[0], b"", text),
                _signature(SECRETS[0], stamp, b""),
                self._mutated(signature),
                "v1,é".encode("latin-1"),
                os.urandom(20),
            ]
        )

    def _shuffle(self, headers: list[tuple[bytes, bytes]]) -> None:
        choose = self.random
        what = choose.randrange(4)
        if what == 0:
            headers.pop(choose.randrange(len(headers)))
        elif what == 1:
            headers.append(choose.choice(headers))
        elif what == 2:
            headers.append((choose.choice(_NAMES), self._mutated(choose.choice(headers)[1])))
        else:
            index = choose.randrange(len(headers))
            headers[index] = (headers[index][0], self._mutated(headers[index][1]))

    def _mutated(self, data: bytes) -> bytes:
        choose = self.random
        for _ in range(choose.choice([1, 1, 1, 2, 4])):
            start = choose.randrange(len(data) + 1)
            end = min(len(data), start + choose.choice([1, 1, 4, 20]))
            what = choose.randrange(6)
            if what == 0 and start < len(data):
                data = data[:start] + bytes([data[start] ^ 1 << choose.randrange(8)]) + data[start + 1 :]
            elif what == 1:
                data = data[:start] + data[end:]
            elif what == 2:
                data = data[:end] + data[start:]
            elif what == 3:
                data = data[:start]
            elif what == 4:
                data = data[:start] + bytes([choose.randrange(256)]) + data[start:]
            else:
                data = data[:start] + choose.choice(_TOKENS) + data[start:]
        return data

    async def _request(self, case: Case) -> None:
        before = self.claims.count, self.executor.count
        try:
            response = await self.receiver.handle(case.method, case.path, case.headers, case.body)
            answer = json.loads(response.body)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} from {case}") from error
        reason = answer.get("error", "") if isinstance(answer, dict) else ""
        self.report.outcomes[f"{response.status} {reason}".strip()] += 1
        assert response.status < 500, f"{response.status} to {case}"
        signed = _is_signed(case)
        self.report.valid += signed
        if not signed:
            accepted = response.status < 400 and case.path != "/health"
            assert not accepted, f"accepted without a valid signature: {case}"
            assert (self.claims.count, self.executor.count) == before, f"claimed unsigned: {case}"

    def _parse(self) -> None:
        what = self.random.randrange(4)
        try:
            if what == 0:
                manifest.parse(self._mutated(self._manifest))
            elif what == 1:
                config.parse(self._mutated(self._config))
            elif what == 2:
                sealed = self._mutated(self._sealed.encode()).decode("latin-1")
                if sealed != self._sealed:
                    plain = decrypt_aes256_gcm(sealed, [SECRETS[0].decode()])
                    # Blanks and unused bits of the last character of base64 do not change what it stands for.
                    assert plain == b"secret", f"{sealed!r} was opened"
            else:
                value = json.loads(self._mutated(b'{"text":"words","count":3,"list":[1,2]}'))
                self._validator.errors(value)
        except (ManifestError, ConfigError, DecryptionError):
            self.report.outcomes["parser refused"] += 1
        except (ValueError, RecursionError):
            assert what == 3, "only the test's own JSON may be unreadable"
        else:
            self.report.outcomes["parser read"] += 1


def fuzz(cases: int, seed: int) -> Report:
    """Runs cases in an event loop of their own."""
    fuzzer = Fuzzer(seed)
    try:
        return asyncio.run(fuzzer.run(cases))
    finally:
        fuzzer.close()


def main() -> int:
    """Prints what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    report = fuzz(arguments.cases, arguments.seed)
    for outcome, count in report.outcomes.most_common():
        print(f"{count:10}  {outcome}")
    print(
        f"fuzz: {arguments.cases} cases, {report.valid} with a valid signature, none accepted without one, none a "
        f"5xx; {time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
