"""From a request to a claimed run, without any web framework.

The order is fixed: signature, then JSON, then route, run id and inputs, then the claim in the ledger, then the
answer. A run id that is only in a header, which nobody signs, is confirmed by Port before anything is made of it. Every refusal is a 4xx with `{"error": "<reason>", "message": "…"}`; a 5xx means that the listener, not
the request, is at fault.

| status | reasons |
|---|---|
| 400 | `duplicate_header`, `malformed_signature`, `malformed_timestamp`, `invalid_json`, `duplicate_key`, …, `not_an_object`, `missing_run_id`, `invalid_run_id` |
| 401 | `missing_signature`, `bad_signature`, `missing_timestamp`, `stale_timestamp` |
| 403 | `wrong_route`, `unconfirmed_run`, `source_address` |
| 404 | `not_found`, `unknown_route` |
| 405 | `wrong_method` |
| 409 | `run_id_reused` |
| 410 | `answer_expired` |
| 413 | `too_large` |
| 422 | `invalid_inputs` (synchronous) |
| 503 | `stopping`, `overloaded` (synchronous), `not_stored`, `not_confirmed` |
| 504 | `still_running` |

An asynchronous run that is verified but cannot be executed is answered 202 with `"accepted": false` and the same
reason: the request has arrived, and the run ends as FAILURE in Port through the outbox. Port does not say what a
4xx does to an asynchronous run, so the answer's status must not be what ends it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote, unquote_to_bytes

from port_webhook_handlers.port.compact_json import compact
from port_webhook_handlers.port.json_codec import JsonCodec, StrictCodec
from port_webhook_handlers.port.payload import ENVELOPE, at
from port_webhook_handlers.port.signature import VerificationError, verify, verify_official_agent
from port_webhook_handlers.port.strict_json import StrictJsonError
from port_webhook_handlers.runtime.claims import Answer, Claim, Claims, LedgerError, SigningSecrets
from port_webhook_handlers.runtime.config import Limits
from port_webhook_handlers.runtime.confirmation import Confirm, NotConfirmedError
from port_webhook_handlers.runtime.inputs import InputsValidator
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Manifest, Route
from port_webhook_handlers.runtime.metrics import Metrics

if TYPE_CHECKING:
    import asyncio

Headers = Sequence[tuple[bytes, bytes]]

PREFIX: Final = "/webhooks/"
VERIFICATION: Final = "_verification"

# A run id becomes a segment of a path in Port's API.
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_POLL_SECONDS: Final = 0.1
_EMPTY: Final = b"{}"

_BAD_REQUEST: Final = frozenset({"malformed_signature", "malformed_timestamp", "malformed_body"})
_MESSAGES: Final = {
    "missing_signature": "The request has no x-port-signature header; only signed requests are accepted.",
    "malformed_signature": "The x-port-signature header must be 'v1,' and 32 bytes in base64.",
    "bad_signature": "No active signing secret made this signature over these bytes.",
    "missing_timestamp": "The request has no x-port-timestamp header.",
    "malformed_timestamp": "The x-port-timestamp header must be seconds or milliseconds since the epoch.",
    "stale_timestamp": "The timestamp is too far from this listener's clock.",
    "malformed_body": "The body is not what Port's execution agent sends.",
}


# Neither is frozen: that would triple what it costs to make one for each request.
@dataclass(slots=True)
class Response:
    """An answer: HTTP status, JSON text and further headers."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class RefusedError(Exception):
    """A request that is not served.

    Attributes:
        status: HTTP status.
        reason: code in snake case.
        message: text for people.
        fields: input to problem, for `invalid_inputs`.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        fields: dict[str, str] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.fields = fields
        self.headers = headers

    @property
    def response(self) -> Response:
        """The answer."""
        return Response(self.status, json_bytes(self.body()), self.headers)

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        body: dict[str, Any] = {"error": self.reason, "message": self.message}
        if self.fields is not None:
            body["fields"] = self.fields
        return body

    def summary(self) -> str:
        """What Port shows for the run."""
        return self.message + "".join(
            f"\n- `{name or 'inputs'}` {problem}" for name, problem in (self.fields or {}).items()
        )


@dataclass(slots=True)
class Invocation:
    """A verified request for one run of a known route."""

    route: Route
    run_id: str
    body: dict[str, Any]
    raw: bytes


Respond = Callable[[Response], None]


_ELSEWHERE: Final = RefusedError(
    403, "source_address", "This listener takes no requests from the sender's address."
)


class QuickLedger(Protocol):
    """A ledger in this process, which claims without a coroutine."""

    def claim_soon(
        self,
        run_id: str,
        route: str,
        mode: str,
        body_hash: bytes,
        payload: bytes,
        then: Callable[[Claim | None, LedgerError | None], None],
    ) -> None:
        """Claims a run; `then` gets the claim, on disk, or the error."""


class QuickExecutor(Protocol):
    """An executor in this process, which answers without a coroutine."""

    def begin(self, invocation: Invocation, seconds: float, then: Callable[[Answer, bytes], None]) -> None:
        """Executes a claimed synchronous run; `then` gets its stored answer, and the body of that as JSON."""


class Executor(Protocol):
    """What the receiver hands runs to."""

    def accepted(self, run_id: str, route: str) -> None:
        """An asynchronous run was claimed."""

    def refused(self, run_id: str) -> None:
        """A run was stored together with the report that ends it."""

    async def answer(self, invocation: Invocation, seconds: float) -> Answer:
        """Executes a claimed synchronous run; its answer is stored when this returns."""

    async def fail_now(self, run_id: str, summary: str) -> None:
        """Tells Port, without the ledger, that a run failed; never raises."""


class Receiver:
    """Verifies, routes, validates and claims.

    Args:
        manifest: routes.
        digest: digest of the bundle that this process loaded.
        nonce: name of this listener at `/health`.
        secrets: signing secrets.
        ledger: where runs are claimed.
        executor: what runs are handed to.
        limits: bounds.
        log, metrics: where requests are noted.
        clock: seconds since the epoch.
        eager: compile all validators of inputs now.
        quick: ledger and executor again, where they are in this process.
        codec: how bodies are read.
        confirm: asks Port about runs whose id is in a header; without it they are not accepted.

    Raises:
        ValueError: a route's input schema is not one.
    """

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        nonce: str,
        secrets: SigningSecrets,
        ledger: Claims,
        executor: Executor,
        limits: Limits,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        *,
        eager: bool = True,
        quick: tuple[QuickLedger, QuickExecutor] | None = None,
        codec: JsonCodec | None = None,
        confirm: Confirm | None = None,
    ) -> None:
        self._quick = quick
        self._confirm = confirm
        self._codec = codec or StrictCodec()
        self._digest = digest
        self._secrets = secrets
        self._ledger = ledger
        self._executor = executor
        self._limits = limits
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._routes = dict(manifest.routes)
        # Those that need nobody's confirmation.
        self._by_path = {
            PREFIX + quote(name, safe=""): route
            for name, route in manifest.routes.items()
            if route.payload.header is None
        }
        self._validators = {
            name: InputsValidator(route.inputs_schema, route.encrypted_inputs, eager=eager)
            for name, route in manifest.routes.items()
        }
        self._agent_probes = any(route.scheme == "official-agent" for route in manifest.routes.values())
        self._health = json_bytes({"status": "ok", "nonce": nonce, "digest": digest})
        # Runs that are being answered here; the future is made for the first repeat that waits.
        self._answers: dict[str, asyncio.Future[Any] | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.overloaded = False

    async def handle(self, method: str, path: str, headers: Headers, body: bytes) -> Response:
        """Answers one request; never raises for what a request holds.

        Args:
            method: in capitals.
            path: as received, percent-encoded, without query.
            headers: names in lower case.
            body: at most `limits.max_body_bytes`; the adapter answers larger ones by `too_large()`.
        """
        return await self._counted(self._handle(method, path, headers, body), path)

    def serve(self, method: str, path: str, headers: Headers, body: bytes, respond: Respond) -> bool:
        """As `handle`, for requests that need no coroutine: the runs of known routes.

        A task, its futures and the frames between them cost more than verification and claim together.

        Args:
            method, path, headers, body: as in `handle`.
            respond: called once with the answer, now or later.

        Returns:
            False if the request is none of those and `handle` must answer it.
        """
        route = self._by_path.get(path)
        if self._quick is None or route is None:
            return False
        ledger, executor = self._quick
        sync = route.mode == "sync"
        try:
            invocation = self._invocation(route, method, headers, body)
            refusal = self._refusal(invocation)
            if refusal is not None:
                if sync:
                    raise refusal
                self._go_on(
                    self._accept(invocation.run_id, route.name, invocation, refusal, False), path, respond
                )
                return True
            body_hash = self._hash(invocation.body)
        except Exception as error:  # noqa: BLE001
            respond(self._failed(error, path))
            return True
        run_id = invocation.run_id

        def claimed(claim: Claim | None, error: LedgerError | None) -> None:
            if claim is None or not claim.new:
                answer = self._answer_to if sync else self._accepted_to
                self._go_on(answer(claim, error, invocation, body_hash), path, respond)
            elif sync:
                self._begin(executor, invocation, path, respond)
            else:
                self._executor.accepted(run_id, route.name)
                self._count(202, "")
                respond(Response(202, _accepted(run_id)))

        ledger.claim_soon(run_id, route.name, route.mode, body_hash, body, claimed)
        return True

    def _begin(self, executor: QuickExecutor, invocation: Invocation, path: str, respond: Respond) -> None:
        run_id, route = invocation.run_id, invocation.route
        self._answers[run_id] = None

        def answered(answer: Answer, text: bytes) -> None:
            waiting = self._answers.pop(run_id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
            self._count(answer.status, "")
            respond(Response(answer.status, text))

        try:
            seconds = min(route.timeout_seconds, self._limits.sync_deadline_seconds)
            executor.begin(invocation, seconds, answered)
        except Exception as error:  # noqa: BLE001
            self._answers.pop(run_id, None)
            respond(self._failed(error, path))

    def _go_on(self, work: Awaitable[Response], path: str, respond: Respond) -> None:
        import asyncio

        async def finish() -> None:
            respond(await self._counted(work, path))

        task = asyncio.ensure_future(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _counted(self, work: Awaitable[Response], path: str) -> Response:
        try:
            response = await work
        except Exception as error:  # noqa: BLE001
            return self._failed(error, path)
        self._count(response.status, "")
        return response

    def _failed(self, error: Exception, path: str) -> Response:
        """The answer to a request that was refused, or at which the listener failed."""
        if isinstance(error, RefusedError):
            reason, response = error.reason, error.response
            self._log("refused", reason=reason, status=error.status, path=path[:200])
        else:
            reason = "internal"
            self._log.error("request failed", error, path=path[:200])
            response = Response(
                500, json_bytes({"error": "internal", "message": "The listener failed; see its log."})
            )
        self._count(response.status, reason)
        return response

    def _count(self, status: int, reason: str) -> None:
        self._metrics.count("port_webhook_requests_total", ("status", str(status)), ("reason", reason))

    def _hash(self, body: dict[str, Any]) -> bytes:
        """Equal for bodies that differ only in blanks, escapes and the order of keys."""
        return hashlib.sha256(self._codec.canonical(body)).digest()

    def too_large(self, path: str) -> Response:
        """The answer to a body above the limit."""
        self._metrics.count("port_webhook_requests_total", ("status", "413"), ("reason", "too_large"))
        self._log("refused", reason="too_large", status=413, path=path[:200])
        limit = self._limits.max_body_bytes
        return Response(
            413, json_bytes(RefusedError(413, "too_large", f"The body is larger than {limit} bytes.").body())
        )

    def from_elsewhere(self, path: str) -> Response:
        """The answer to a request from an address that is none of the configured ones."""
        return self._failed(_ELSEWHERE, path)

    async def take(self, name: str, body: dict[str, Any], raw: bytes) -> Response:
        """Claims a run of a message that the agent of this process has verified.

        Args:
            name: the route.
            body: the message, and `raw`, its bytes as they are stored.

        Raises:
            RefusedError: it is none of a route's, or was not claimed; Port has not been told.
        """
        route = self._routes.get(name)
        if route is None:
            raise RefusedError(404, "unknown_route", "No handler is deployed for this route.")
        if len(raw) > self._limits.max_body_bytes:
            raise RefusedError(
                413, "too_large", f"The message is larger than {self._limits.max_body_bytes} bytes."
            )
        invocation = Invocation(route, _run_of(route, body), body, raw)
        return await self._claim(invocation, comes_again=True)

    async def take_many(
        self,
        messages: Sequence[tuple[str, dict[str, Any], bytes]],
        claim_many: Callable[[Sequence[tuple[str, str, bytes, bytes]]], Awaitable[list[bool]]],
    ) -> list[bool]:
        """As `take` for many, where nothing out of the ordinary happens.

        Args:
            messages: route, body and its bytes, of each.
            claim_many: the ledger's.

        Returns:
            for each whether it is claimed now; any other must go through `take`.
        """
        claims: list[tuple[str, str, bytes, bytes]] = []
        places: list[int] = []
        for place, (name, body, raw) in enumerate(messages):
            route = self._routes.get(name)
            if route is None or route.mode != "async" or len(raw) > self._limits.max_body_bytes:
                continue
            try:
                invocation = Invocation(route, _run_of(route, body), body, raw)
                if self._refusal(invocation) is not None:
                    continue
            except RefusedError:
                continue
            claims.append((invocation.run_id, route.name, self._hash(body), raw))
            places.append(place)
        taken = [False] * len(messages)
        if claims:
            try:
                found = await claim_many(claims)
            except LedgerError as error:
                self._log("not stored", count=len(claims), error=str(error))
                return taken
            for place, claim, new in zip(places, claims, found, strict=True):
                if new:
                    taken[place] = True
                    self._executor.accepted(claim[0], claim[1])
        return taken

    def is_synchronous(self, name: str) -> bool:
        """Whether a route's answer is its result."""
        return self._routes[name].mode == "sync"

    async def _handle(self, method: str, path: str, headers: Headers, body: bytes) -> Response:
        route = self._by_path.get(path)
        if route is not None:
            invocation = self._invocation(route, method, headers, body)
            return await self._claim(invocation)
        if path == "/health":
            if method not in ("GET", "HEAD"):
                raise _wrong_method("GET, HEAD")
            return Response(200, self._health)
        if not path.startswith(PREFIX):
            raise RefusedError(404, "not_found", "There is nothing here; routes are under /webhooks/.")
        try:
            name = unquote_to_bytes(path[len(PREFIX) :]).decode()
        except UnicodeDecodeError:
            raise RefusedError(404, "not_found", "The path is not UTF-8.") from None
        if name == VERIFICATION:
            return await self._probe(method, headers, body)
        route = self._routes.get(name)
        if route is not None and route.payload.header is not None:
            return await self._claim(await self._confirmed(route, method, headers, body))
        if route is not None:
            return await self._claim(self._invocation(route, method, headers, body))
        return await self._unknown(name, headers, body)

    # Verification

    def _verified(
        self, scheme: str, headers: Headers, body: bytes, content: bytes | None = None
    ) -> dict[str, Any]:
        """The object in a signed body; or in `content`, which the body then stands for."""
        signature: str | None = None
        timestamp: str | None = None
        for name, value in headers:
            if name == b"x-port-signature":
                if signature is not None:
                    raise RefusedError(400, "duplicate_header", "The x-port-signature header is there twice.")
                signature = value.decode("latin-1")
            elif name == b"x-port-timestamp":
                if timestamp is not None:
                    raise RefusedError(400, "duplicate_header", "The x-port-timestamp header is there twice.")
                timestamp = value.decode("latin-1")
        now = self._clock()
        try:
            try:
                parsed = self._open(
                    self._secrets.signing(now), scheme, signature, timestamp, body, now, content
                )
            except VerificationError as error:
                # Port may sign with a secret that was stored a moment ago.
                if error.reason != "bad_signature" or not self._secrets.refresh():
                    raise
                parsed = self._open(
                    self._secrets.signing(now), scheme, signature, timestamp, body, now, content
                )
        except VerificationError as error:
            status = 400 if error.reason in _BAD_REQUEST else 401
            raise RefusedError(
                status, error.reason, _MESSAGES.get(error.reason, "The request is not Port's.")
            ) from None
        except StrictJsonError as error:
            raise RefusedError(400, error.reason, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
        if not isinstance(parsed, dict):
            raise RefusedError(400, "not_an_object", "The body must be a JSON object.")
        return parsed

    def _open(
        self,
        secrets: Sequence[bytes],
        scheme: str,
        signature: str | None,
        timestamp: str | None,
        body: bytes,
        now: float,
        content: bytes | None,
    ) -> object:
        limits = self._limits
        if scheme == "official-agent":
            return verify_official_agent(
                secrets,
                signature,
                timestamp,
                body,
                now=now,
                tolerance=limits.tolerance_seconds,
                max_bytes=limits.max_body_bytes,
            )
        verify(secrets, signature, timestamp, body, now=now, tolerance=limits.tolerance_seconds)
        return self._codec.read(body if content is None else content)

    def _invocation(self, route: Route, method: str, headers: Headers, body: bytes) -> Invocation:
        parsed = self._verified(route.scheme, headers, body)
        if method != route.method:
            raise _wrong_method(route.method)
        return Invocation(route, _run_of(route, parsed, headers), parsed, body)

    async def _confirmed(self, route: Route, method: str, headers: Headers, body: bytes) -> Invocation:
        """As `_invocation`, where the run's id is in a header."""
        if not body and route.payload.empty_body:
            invocation = self._empty_invocation(route, method, headers)
        else:
            invocation = self._invocation(route, method, headers, body)
        run_id = invocation.run_id
        try:
            known = await self._ledger.lookup(run_id, route.name, self._hash(invocation.body))
        except LedgerError:
            known = None
        if known is not None and known.same:
            # A repeat: Port was asked about the first one, and may have ended the run since.
            return invocation
        try:
            if self._confirm is None:
                raise NotConfirmedError("this listener has no way to ask Port")
            confirmed = await self._confirm(run_id, route.action)
        except NotConfirmedError as error:
            self._log("run not confirmed", run=run_id, route=route.name, error=str(error))
            raise RefusedError(
                503, "not_confirmed", "Port could not be asked about the run; nothing was started."
            ) from None
        if not confirmed:
            raise RefusedError(
                403, "unconfirmed_run", "Port knows no run of this action with this id that is in progress."
            )
        return invocation

    def _empty_invocation(self, route: Route, method: str, headers: Headers) -> Invocation:
        # Port does not say whether a request without a body is signed over nothing or over an empty object.
        try:
            parsed = self._verified("raw", headers, b"", _EMPTY)
        except RefusedError as refusal:
            if refusal.reason != "bad_signature":
                raise
            parsed = self._verified("raw", headers, _EMPTY)
        if method != route.method:
            raise _wrong_method(route.method)
        return Invocation(route, _run_of(route, parsed, headers), parsed, _EMPTY)

    # Claims

    async def _claim(self, invocation: Invocation, *, comes_again: bool = False) -> Response:
        route = invocation.route
        refusal = self._refusal(invocation)
        if route.mode == "sync":
            if refusal is not None:
                raise refusal
            return await self._answer(invocation)
        return await self._accept(invocation.run_id, route.name, invocation, refusal, comes_again)

    def _refusal(self, invocation: Invocation) -> RefusedError | None:
        if self.stopping:
            return RefusedError(503, "stopping", "The listener is being stopped and starts no more runs.")
        if self.overloaded:
            return RefusedError(503, "overloaded", "Too many runs are waiting; try again later.")
        if invocation.route.kind == "automation":
            # An event's shape is Port's, not a form's.
            return None
        payload, body = invocation.route.payload, invocation.body
        inputs = body.get("inputs", {}) if payload is ENVELOPE else payload.inputs_of(body)
        fields = self._validators[invocation.route.name].errors(inputs)
        if fields:
            return RefusedError(422, "invalid_inputs", "The inputs are not valid.", fields)
        return None

    async def _accept(
        self,
        run_id: str,
        route: str,
        invocation: Invocation,
        refusal: RefusedError | None,
        comes_again: bool,
    ) -> Response:
        body_hash = self._hash(invocation.body)
        answer: Answer | None = None
        failure: dict[str, Any] | None = None
        if refusal is not None:
            answer = Answer(202, {"accepted": False, "runId": run_id, **refusal.body()})
            failure = {"status": "FAILURE", "summary": refusal.summary()}
        try:
            claim = await self._ledger.claim(
                run_id, route, "async", body_hash, invocation.raw, refusal=answer, failure=failure
            )
        except LedgerError as error:
            claim = await self._not_stored(run_id, route, body_hash, error, comes_again)
        if claim.new and refusal is not None:
            self._executor.refused(run_id)
            self._log("run refused", run=run_id, route=route, reason=refusal.reason)
        elif claim.new:
            self._executor.accepted(run_id, route)
        return _acceptance(run_id, claim)

    async def _accepted_to(
        self, claim: Claim | None, error: LedgerError | None, invocation: Invocation, body_hash: bytes
    ) -> Response:
        run_id = invocation.run_id
        if error is not None or claim is None:
            claim = await self._not_stored(
                run_id, invocation.route.name, body_hash, error or LedgerError("no claim")
            )
        return _acceptance(run_id, claim)

    async def _not_stored(
        self, run_id: str, route: str, body_hash: bytes, error: LedgerError, comes_again: bool = False
    ) -> Claim:
        self._log("not stored", run=run_id, route=route, error=str(error))
        try:
            known = await self._ledger.lookup(run_id, route, body_hash)
        except LedgerError:
            known = None
        if known is not None:
            # A repeat needs no place in the ledger, and its run must not be failed.
            return known
        if not comes_again:
            await self._executor.fail_now(run_id, "The listener could not store the run; it was not started.")
        raise RefusedError(503, "not_stored", "The run could not be stored and was not started.") from None

    async def _answer(self, invocation: Invocation) -> Response:
        body_hash = self._hash(invocation.body)
        try:
            claim = await self._ledger.claim(
                invocation.run_id, invocation.route.name, "sync", body_hash, invocation.raw
            )
        except LedgerError as error:
            return await self._answer_to(None, error, invocation, body_hash)
        return await self._answer_to(claim, None, invocation, body_hash)

    async def _answer_to(
        self, claim: Claim | None, error: LedgerError | None, invocation: Invocation, body_hash: bytes
    ) -> Response:
        # Here, because a cold start on Lambda has no event loop on the path to an acceptance.
        import asyncio

        run_id, route = invocation.run_id, invocation.route
        seconds = min(route.timeout_seconds, self._limits.sync_deadline_seconds)
        if claim is None:
            self._log("not stored", run=run_id, route=route.name, error=str(error))
            raise RefusedError(503, "not_stored", "The run could not be stored and was not started.")
        if not claim.same:
            raise _reused()
        if claim.new:
            task = asyncio.ensure_future(self._executor.answer(invocation, seconds))
            self._answers[run_id] = task
            task.add_done_callback(lambda _: self._answers.pop(run_id, None))
            # The run outlives its request: a lost connection must not end it half-way.
            answer = await asyncio.shield(task)
        else:
            answer = await self._first_answer(claim, invocation, body_hash, seconds)
        return Response(answer.status, json_bytes(answer.body))

    async def _first_answer(
        self, claim: Claim, invocation: Invocation, body_hash: bytes, seconds: float
    ) -> Answer:
        import asyncio

        until = time.monotonic() + seconds
        while claim.state != "done":
            left = until - time.monotonic()
            if left <= 0:
                raise RefusedError(504, "still_running", "The first request of this run has no answer yet.")
            if invocation.run_id in self._answers:
                running = self._answers[invocation.run_id]
                if running is None:
                    running = self._answers[invocation.run_id] = asyncio.get_running_loop().create_future()
                await asyncio.wait([running], timeout=left)
            else:
                # Another process executes it, during an exchange of servers.
                await asyncio.sleep(min(left, _POLL_SECONDS))
            found = await self._ledger.lookup(invocation.run_id, invocation.route.name, body_hash)
            if found is None:
                raise RefusedError(
                    409, "interrupted", "The first request of this run was interrupted; send it again."
                )
            claim = found
        if claim.answer is None:
            raise RefusedError(410, "answer_expired", "This run has ended; its answer is not kept any more.")
        return claim.answer

    async def _probe(self, method: str, headers: Headers, body: bytes) -> Response:
        try:
            parsed = self._verified("raw", headers, body)
        except RefusedError as refusal:
            if refusal.reason != "bad_signature" or not self._agent_probes:
                raise
            # The reserved route runs nothing, so it may accept whichever scheme a route of this bundle does.
            try:
                parsed = self._verified("official-agent", headers, body)
            except RefusedError:
                raise refusal from None
        if method != "POST":
            raise _wrong_method("POST")
        run_id = _envelope_run(parsed, VERIFICATION)
        try:
            claim = await self._ledger.claim(run_id, VERIFICATION, "probe", self._hash(parsed), body)
        except LedgerError as error:
            self._log("not stored", run=run_id, route=VERIFICATION, error=str(error))
            raise RefusedError(503, "not_stored", "The ledger cannot be written.") from None
        if not claim.same:
            raise _reused()
        return Response(200, json_bytes({"digest": self._digest, "executions": claim.executions}))

    async def _unknown(self, name: str, headers: Headers, body: bytes) -> Response:
        parsed = self._verified("raw", headers, body)
        unknown = RefusedError(
            404, "unknown_route", "No handler is deployed for this route; deploy the stack again."
        )
        try:
            run_id = _envelope_run(parsed, name)
        except RefusedError:
            raise unknown from None
        # It is a run of that action, so it would stay open in Port if nobody ended it.
        answer = Answer(404, unknown.body())
        failure = {"status": "FAILURE", "summary": unknown.summary()}
        try:
            claim = await self._ledger.claim(
                run_id, name, "async", self._hash(parsed), body, refusal=answer, failure=failure
            )
        except LedgerError as error:
            claim = await self._not_stored(run_id, name, self._hash(parsed), error)
        if not claim.same:
            raise _reused()
        if claim.new:
            self._executor.refused(run_id)
        raise unknown


def _run_of(route: Route, body: dict[str, Any], headers: Headers = ()) -> str:
    """The run that a verified request is for; it is refused unless it names this route, where its form does."""
    payload = route.payload
    if payload is ENVELOPE:
        return _envelope_run(body, route.action)
    # Whatever its form: a body that names another action in the place of the envelope is not for this one.
    named = at(body, ENVELOPE.action)
    if named is not None and named != route.action:
        raise _wrong_route("port_context.action")
    if not payload.names(body, route.action):
        raise _wrong_route(str(payload.action))
    if payload.header is not None:
        return _header_run(headers, payload.header)
    return _checked_run_id(at(body, payload.run_id), payload.run_id)


def _envelope_run(body: dict[str, Any], action: str) -> str:
    context = body.get("port_context")
    # All actions of an organisation are signed alike: without this a request for one could be sent to another.
    if not isinstance(context, dict) or context.get("action") != action:
        raise _wrong_route("port_context.action")
    return _checked_run_id(context.get("runId"), ENVELOPE.run_id)


def _header_run(headers: Headers, header: str) -> str:
    wanted = header.lower().encode()
    found = [value for name, value in headers if name == wanted]
    if len(found) > 1:
        raise RefusedError(400, "duplicate_header", f"The {header} header is there twice.")
    if not found:
        raise RefusedError(400, "missing_run_id", f"The request has no {header} header with the run's id.")
    return _checked_run_id(found[0].decode("latin-1"), f"the {header} header")


def _checked_run_id(value: object, where: str) -> str:
    if value is None:
        raise RefusedError(400, "missing_run_id", f"The body has no run id at {where}.")
    if not isinstance(value, str) or not _RUN_ID.fullmatch(value):
        raise RefusedError(400, "invalid_run_id", f"The value at {where} is not a run id.")
    return value


def _wrong_route(path: str) -> RefusedError:
    return RefusedError(403, "wrong_route", f"The body's {path} does not name this route.")


def _acceptance(run_id: str, claim: Claim) -> Response:
    if not claim.same:
        raise _reused()
    if claim.answer is not None:
        return Response(claim.answer.status, json_bytes(claim.answer.body))
    return Response(202, _accepted(run_id))


def _accepted(run_id: str) -> bytes:
    return b'{"accepted":true,"runId":"' + run_id.encode() + b'"}'


def _wrong_method(allowed: str) -> RefusedError:
    message = f"This path is invoked with {allowed}."
    return RefusedError(405, "wrong_method", message, headers=((b"allow", allowed.encode()),))


def _reused() -> RefusedError:
    return RefusedError(
        409, "run_id_reused", "This run id was used with another request; nothing was started."
    )


def json_bytes(value: Any) -> bytes:
    """Compact JSON in ASCII."""
    return compact(value).encode()
