"""The provider's side of `Verification`: the probes."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from port_webhook_stack.port.handler import (
    UNKNOWN,
    CheckResult,
    Context,
    CreateResult,
    Diff,
    Kind,
    Properties,
    ProviderError,
    ReadResult,
)

if TYPE_CHECKING:
    import requests

ROUTE = "_verification"
"""Reserved route: verified like any other, but it runs no handler."""

OVERSIZED_BYTES = 256 * 1024 + 1
"""One byte more than a listener accepts."""

_TIMEOUT_SECONDS = 15.0
_PAUSE_SECONDS = 2.0
_TRIGGERS = ("url", "digest", "secretsVersion", "signingSecret", "scheme")


@dataclass(frozen=True)
class _Answer:
    status: int
    body: Mapping[str, Any]

    @property
    def shown(self) -> str:
        reason = self.body.get("error")
        return f"{self.status} {reason}" if reason else str(self.status)


class VerificationHandler:
    """Probes on create and update; state holds what was proved."""

    schema: Mapping[str, Any] = {
        "description": "Signed probes through the deployed path of a listener.",
        "inputProperties": {
            "url": {"type": "string", "description": "Base URL of the listener."},
            "digest": {"type": "string", "description": "Digest of the bundle that must answer."},
            "secretsVersion": {"type": "string", "description": "Version of the listener's secrets store."},
            "signingSecret": {
                "type": "string",
                "secret": True,
                "description": "A secret that Port signs with.",
            },
            "scheme": {"type": "string", "description": "Signature scheme of the probes."},
            "settleSeconds": {
                "type": "integer",
                "description": "How long the way to the listener may still be that of before.",
            },
        },
        "requiredInputs": ["url", "digest", "secretsVersion", "signingSecret"],
        "properties": {
            "checks": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Probes that were answered as they must be.",
            }
        },
        "required": ["checks"],
    }
    secrets = frozenset({"signingSecret"})

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        return CheckResult({"scheme": "raw", "settleSeconds": 0, **news})

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        return Diff({name: Kind.UPDATE for name in _TRIGGERS if olds.get(name) != news.get(name)})

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        if preview:
            return CreateResult("", {**inputs, "checks": UNKNOWN})
        return CreateResult(f"verification-{secrets.token_hex(8)}", {**inputs, "checks": probe(ctx, inputs)})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        return ReadResult(id, state, inputs)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        return {**news, "checks": UNKNOWN if preview else probe(ctx, news)}

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        return None


def probe(ctx: Context, inputs: Properties) -> list[str]:
    """Sends every probe, again and again while the way settles; returns their names.

    Raises:
        ProviderError: a probe was answered in another way than it must be, or not at all.
    """
    import requests

    with requests.Session() as session:
        # The probes must reach the listener itself, so proxies of the environment do not apply to loopback.
        session.trust_env = "127.0.0.1" not in inputs["url"] and "localhost" not in inputs["url"]
        until = time.monotonic() + float(inputs.get("settleSeconds") or 0)
        while True:
            try:
                return _Probe(ctx, session, inputs).run()
            except ProviderError as error:
                if time.monotonic() >= until or ctx.cancelled.wait(_PAUSE_SECONDS):
                    raise
                ctx.log.info(f"{error}; trying again")


class _Probe:
    def __init__(self, ctx: Context, session: requests.Session, inputs: Properties) -> None:
        self._ctx = ctx
        self._session = session
        self._url = f"{inputs['url']}/webhooks/{ROUTE}"
        self._secret = str(inputs["signingSecret"])
        self._scheme = str(inputs["scheme"])
        self._digest = str(inputs["digest"])

    def run(self) -> list[str]:
        body = self._body()
        now = time.time()
        first = self._signed(body, now)
        self._expect("signed", first, lambda a: a.status == 200, "200")
        if first.body.get("digest") != self._digest:
            raise ProviderError(
                f"verification failed: {self._url} runs bundle {first.body.get('digest')!r}, deployed was "
                f"{self._digest!r}. Another listener may own this address; check `port-webhook status`"
            )
        replay = self._signed(body, now)
        self._expect(
            "replay",
            replay,
            lambda a: a.status == 200 and a.body == first.body and a.body.get("executions") == 1,
            "the first answer again, with one execution",
        )
        refused: list[tuple[str, Callable[[], _Answer]]] = [
            ("unsigned", lambda: self._send(self._body(), {})),
            ("altered", lambda: self._altered(now)),
            ("stale", lambda: self._signed(self._body(), now - 3600)),
            ("future", lambda: self._signed(self._body(), now + 3600)),
            ("oversized", lambda: self._signed(self._body(padding=OVERSIZED_BYTES), now)),
        ]
        for name, send in refused:
            if self._ctx.cancelled.is_set():
                raise ProviderError("verification was cancelled")
            self._expect(name, send(), lambda a: 400 <= a.status < 500, "a refusal (4xx)")
        return ["signed", "digest", "replay", *(name for name, _ in refused)]

    def _expect(self, name: str, answer: _Answer, ok: Callable[[_Answer], bool], expected: str) -> None:
        if not ok(answer):
            raise ProviderError(
                f"verification failed: the {name} probe of {self._url} was answered {answer.shown}, "
                f"expected {expected}. See the listener's log (`port-webhook logs`)"
            )

    def _body(self, *, padding: int = 0) -> bytes:
        envelope: dict[str, Any] = {
            "port_context": {"action": ROUTE, "runId": f"verification_{secrets.token_hex(12)}"}
        }
        if padding:
            envelope["padding"] = "x" * padding
        separators = (", ", ": ") if self._scheme == "official-agent" else (",", ":")
        return json.dumps(envelope, separators=separators).encode()

    def _signed(self, body: bytes, at: float) -> _Answer:
        return self._send(body, self._headers(body, at))

    def _altered(self, at: float) -> _Answer:
        body = self._body()
        return self._send(body.replace(b"verification_", b"verification-", 1), self._headers(body, at))

    def _headers(self, body: bytes, at: float) -> dict[str, str]:
        from port_webhook_handlers.port.signature import sign

        timestamp = str(int(at))
        signed = json.dumps(json.loads(body), separators=(",", ":")).encode()
        return {
            "x-port-timestamp": timestamp,
            "x-port-signature": sign(self._secret, timestamp, signed),
        }

    def _send(self, body: bytes, headers: Mapping[str, str]) -> _Answer:
        import requests

        try:
            response = self._session.post(
                self._url,
                data=body,
                headers={"content-type": "application/json", **headers},
                timeout=_TIMEOUT_SECONDS,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise ProviderError(
                f"verification failed: {self._url} does not answer ({type(error).__name__}). "
                "Is the listener reachable from here? For private ingress set port-webhook-stack:verify to off"
            ) from error
        try:
            parsed = response.json()
        except ValueError:
            parsed = {}
        return _Answer(response.status_code, parsed if isinstance(parsed, dict) else {})
