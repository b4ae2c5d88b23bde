"""The ASGI application: guards, authentication, limits, faults, dispatch."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from port_webhook_localport import admin, routes, runstate
from port_webhook_localport.delivery import ORIGIN_HEADER, Deliverer
from port_webhook_localport.faults import error_of
from port_webhook_localport.port import Port, RateWindow
from port_webhook_localport.web import ApiError, Call, Reply, compact, not_supported, parse_json

_LOG = logging.getLogger("port_webhook_localport")
MAX_BODY_BYTES = 1024 * 1024
TICK_SECONDS = 0.25
_AUTHENTICATION = "/v1/auth/access_token"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = dict[str, str]


class App:
    """Local Port as an ASGI application.

    Args:
        port: the state.
        nonce: what `/_local/health` answers, so that a starter recognises its server.
    """

    def __init__(self, port: Port, nonce: str) -> None:
        self._port = port
        self._nonce = nonce
        self._deliverer: Deliverer | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            raise RuntimeError("local Port speaks HTTP only")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._deliverer = Deliverer(self._port)
                self._deliverer.resume()
                self._ticking = asyncio.create_task(self._tick())
                await send({"type": "lifespan.startup.complete"})
            else:
                self._port.stopping.set()
                if self._ticking is not None:
                    self._ticking.cancel()
                if self._deliverer is not None:
                    await self._deliverer.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                admin.tick(self._port)
            except Exception:  # noqa: BLE001 - the next tick tries again
                _LOG.exception("timers")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        extra: Headers = {}
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            reply = await self._answer(scope, headers, receive, extra)
            status, body = reply.status, {"ok": True, **reply.body}
        except ApiError as error:
            status, body = error.status, error.body()
        except RecursionError:
            status, body = 400, ApiError(400, "bad_request", "the body is nested too deeply").body()
        except _DroppedError:
            await _drop(receive, send)
            return
        except Exception:  # noqa: BLE001 - a defect of one route is one 500, and is logged
            _LOG.exception("%s %s", scope["method"], scope["path"])
            status, body = 500, ApiError(500, "internal_error", "see the log of local Port").body()
        content = compact(body).encode()
        sent: Headers = {
            "content-type": "application/json; charset=utf-8",
            "content-length": str(len(content)),
            "cache-control": "no-store",
            "x-trace-id": uuid.uuid4().hex,
            **self._rate_headers(),
            **extra,
        }
        raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw_headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, extra: Headers) -> Reply:
        self._check_origin(headers)
        method, raw_path = scope["method"], scope["raw_path"].decode("latin-1").partition("?")[0]
        if raw_path == "/_local/health" and method == "GET":
            return Reply(admin.health(self._port, self._nonce))
        body = await _read_body(headers, receive)
        match = routes.find(method, raw_path)
        if raw_path.startswith("/_local/"):
            self._check_admin(headers)
            return self._dispatch(match, method, raw_path, scope, headers, body)
        if not raw_path.startswith("/v1/"):
            raise ApiError(404, "not_found", f"{method} {raw_path[:200]} is not a route of Port's API")
        self._port.calls[match.route.name if match.route else "unknown route"] += 1
        self._count_call()
        fault = self._port.faults.for_call(method, raw_path)
        if fault is not None and "delaySeconds" in fault:
            await self._pause(fault["delaySeconds"])
        if fault is not None and not fault.get("after"):
            _raise_fault(fault, extra)
        if raw_path != _AUTHENTICATION:
            self._check_token(headers)
        reply = self._dispatch(match, method, raw_path, scope, headers, body)
        if fault is not None and fault.get("after"):
            _raise_fault(fault, extra)
        return reply

    def _dispatch(
        self, match: routes.Match, method: str, raw_path: str, scope: Scope, headers: Headers, body: bytes
    ) -> Reply:
        if match.route is None:
            name = f"{method} {raw_path[:200]}"
            if match.path_known:
                raise ApiError(404, "not_found", f"{name} is not a route of Port's API")
            raise not_supported(f"the route {name}")
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        lists: dict[str, list[str]] = {}
        for name, value in pairs:
            lists.setdefault(name.removesuffix("[]"), []).append(value)
        call = Call(
            path=match.parameters,
            query=dict(pairs),
            lists=lists,
            headers=headers,
            body=parse_json(body) if body else None,
        )
        with self._port.change():
            self._attribute(call)
            return match.route.handler(self._port, call)

    def _attribute(self, call: Call) -> None:
        """Recognises a call that one of the own invocations makes."""
        key, _, run_id = call.headers.get(ORIGIN_HEADER, "").partition(":")
        if key and hmac.compare_digest(key.encode(), self._port.origin_key.encode()):
            run = runstate.find(self._port, run_id)
            if run is not None:
                call.chain, call.causing_run = run.chain, run.id

    def _check_origin(self, headers: Headers) -> None:
        """Refuses pages of other sites, and names that lead here by DNS rebinding."""
        number = self._port.base_url.rpartition(":")[2]
        hosts = (f"127.0.0.1:{number}", f"localhost:{number}")
        if headers.get("host", "") not in hosts:
            raise ApiError(
                403, "forbidden_host", f"local Port answers to the hosts {' and '.join(hosts)} only"
            )
        origin = headers.get("origin")
        if origin is not None and origin not in tuple(f"http://{host}" for host in hosts):
            raise ApiError(403, "forbidden_origin", "local Port answers to its own pages only")

    def _check_admin(self, headers: Headers) -> None:
        if not _same_token(headers, self._port.credentials.admin_token):
            raise ApiError(401, "unauthorized", "the admin routes need the admin token as a bearer token")

    def _check_token(self, headers: Headers) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._port.tokens.check(token.strip()):
            raise ApiError(401, "unauthorized", "the access token is missing, wrong or expired")

    def _count_call(self) -> None:
        port = self._port
        if time.time() - port.window.started >= port.settings.rate_limit_period_seconds:
            port.window = RateWindow()
        port.window.used += 1
        if port.window.used > port.settings.rate_limit:
            raise ApiError(429, "too_many_requests", "the rate limit of the organisation is used up")

    def _rate_headers(self) -> Headers:
        settings, window = self._port.settings, self._port.window
        left = max(0.0, window.started + settings.rate_limit_period_seconds - time.time())
        reset = left if settings.rate_limit_reset == "delay" else time.time() + left
        return {
            "x-ratelimit-limit": str(settings.rate_limit),
            "x-ratelimit-remaining": str(max(0, settings.rate_limit - window.used)),
            "x-ratelimit-period": f"{settings.rate_limit_period_seconds:g}",
            "x-ratelimit-reset": str(int(reset) + 1),
        }

    async def _pause(self, seconds: float) -> None:
        """Waits, but not longer than the server lives."""
        try:
            await asyncio.wait_for(self._port.stopping.wait(), seconds)
        except TimeoutError:
            return


class _DroppedError(Exception):
    """The connection ends without a reply."""


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    too_long = ApiError(413, "bad_request", f"the body is longer than {MAX_BODY_BYTES} bytes")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise too_long
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DroppedError
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_long
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _drop(receive: Receive, send: Send) -> None:
    """Closes the connection without a byte, which ASGI has no message for: uvicorn's transport is asked."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
        while (await receive())["type"] != "http.disconnect":
            pass


def _same_token(headers: Headers, expected: str) -> bool:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), expected.encode())


def _raise_fault(fault: dict[str, Any], extra: Headers) -> None:
    if fault.get("drop"):
        raise _DroppedError
    if "status" not in fault and "delaySeconds" in fault:
        return
    seconds = fault.get("resetSeconds", 1)
    if "reset" in fault:
        reset = seconds if fault["reset"] == "delay" else time.time() + seconds
        extra |= {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(reset))}
    if "retryAfterSeconds" in fault:
        extra["retry-after"] = f"{fault['retryAfterSeconds']:g}"
    raise error_of(fault)
