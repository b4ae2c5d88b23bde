"""Delivery of invocations: signed requests of Port to webhooks, and entity upserts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from port_webhook_localport import automations, changelog, entities, invocations, kafka, runstate
from port_webhook_localport.http_client import HttpReply, SendError, send
from port_webhook_localport.kafka import Publisher
from port_webhook_localport.port import Port
from port_webhook_localport.signature import sign
from port_webhook_localport.web import ApiError, compact

_LOG = logging.getLogger("port_webhook_localport")
ORIGIN_HEADER = "x-local-port-origin"
_PORT_HOSTS = ("api.getport.io", "api.us.getport.io", "api.port.io", "api.us.port.io")
# Set by local Port itself; a custom header of that name would break the request or the signature.
_RESERVED_HEADERS = (
    "host", "content-length", "connection", "transfer-encoding", "x-port-timestamp", "x-port-signature",
    ORIGIN_HEADER,
)  # fmt: skip
_OWN_HEADERS = (("Accept", "application/json, text/plain, */*"), ("User-Agent", "port-local"))
_CONCURRENT = 64


class Deliverer:
    """Delivers queued runs as tasks of the event loop, a bounded number at once."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._slots = asyncio.Semaphore(_CONCURRENT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._publisher = Publisher()
        self._changes = asyncio.Lock()
        port.deliver_with(self.start, self.cancel)

    def start(self, run_id: str) -> None:
        work = self._send_changes() if run_id == changelog.QUEUE else self._deliver(run_id)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def resume(self) -> None:
        """Settles what the end of the previous process interrupted.

        An asynchronous invocation is delivered again, because nobody knows whether it arrived; a
        synchronous one has lost its reply and ends in FAILURE.
        """
        port = self._port
        with port.change():
            for run in runstate.with_delivery(port, "pending", "sending"):
                if run.delivery == "sending" and run.synchronized:
                    _finish(port, run, "FAILURE", "Local Port was stopped before the webhook replied.")
                else:
                    run.delivery = "pending"
                    runstate.save(port, run)
                    port.queue_delivery(run.id)
            port.queue_delivery(changelog.QUEUE)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Ends what is under way; `resume` settles it at the next start."""
        tasks = list(self._tasks)
        self.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_changes(self) -> None:
        # One after the other: a change log is of use only in its order.
        async with self._changes:
            try:
                await changelog.send_waiting(self._port, self._publisher)
            except Exception:  # noqa: BLE001 - the next change tries again
                _LOG.exception("change log")

    async def _deliver(self, run_id: str) -> None:
        async with self._slots:
            try:
                await _deliver(self._port, run_id, self._publisher)
            except Exception:  # noqa: BLE001 - one delivery must not end the others; it is logged
                _LOG.exception("delivery of run %s", run_id)


async def _deliver(port: Port, run_id: str, publisher: Publisher) -> None:
    with port.change():
        run = runstate.find(port, run_id)
        if run is None or run.status != "IN_PROGRESS" or run.delivery != "pending":
            return
        try:
            evaluated = invocations.evaluate(port, run.internal["method"], run.internal["context"])
        except ApiError as error:
            fail_unevaluable(port, run, error)
            return
        to_topic = run.agent or run.internal["method"]["type"] in kafka.TYPES
        if not isinstance(evaluated, invocations.Webhook) and not to_topic:
            _upsert_entity(port, run, evaluated)
            return
        if not to_topic:
            run.delivery = "sending"
            runstate.save(port, run)
    if to_topic:
        await _publish(port, run, evaluated, publisher)
        return
    outcome, reply = await _send(port, run, evaluated)
    with port.change():
        current = runstate.find(port, run_id)
        if current is None:
            return
        current.delivery = "none"
        if current.synchronized and current.status == "IN_PROGRESS":
            succeeded = reply is not None and 200 <= reply.status < 300
            if reply is not None:
                current.doc["response"] = port.mask_all(_parsed(reply.body))
            _finish(port, current, "SUCCESS" if succeeded else "FAILURE", outcome)
        else:
            runstate.add_log(port, run_id, outcome)
            runstate.save(port, current)


async def _publish(port: Port, run: runstate.Run, evaluated: Any, publisher: Publisher) -> None:
    """Writes a run to the topic; one that the broker does not take stays pending for the next start."""
    fault = port.faults.for_delivery(run.action)
    if "delaySeconds" in fault:
        await asyncio.sleep(fault["delaySeconds"])
    if isinstance(evaluated, invocations.Webhook):
        body = kafka.unsigned(run.id, evaluated.payload())
        timestamp, signature = _signed(port.credentials.signing_secret, compact(body).encode(), fault)
        value = kafka.signed(body, timestamp, signature)
    elif evaluated["type"] == "GITLAB":
        body = kafka.pipeline(run.id, run.action, evaluated, run.internal["context"])
        timestamp, signature = _signed(port.credentials.signing_secret, compact(body).encode(), fault)
        value = kafka.signed({**body, "headers": {}}, timestamp, signature)
    else:
        # What the definition says is the message, and nothing signs it (Port's documented form).
        value = compact(evaluated["payload"]).encode()
    settings = port.kafka
    line = "The message was written to the topic."
    try:
        if settings is None:
            raise kafka.PublishError("no broker is configured any more")
        for _ in range(1 + fault.get("duplicates", 0)):
            topic = f"{port.organization_id}.runs"
            await asyncio.to_thread(publisher.publish, settings, topic, run.id, value)
    except kafka.PublishError as error:
        line = f"The message was not written to the topic: {error}."
    with port.change():
        current = runstate.find(port, run.id)
        if current is None:
            return
        runstate.add_log(port, run.id, line)
        if "not written" not in line:
            current.delivery = "none" if current.status != "IN_PROGRESS" else "published"
            runstate.save(port, current)


async def _send(port: Port, run: runstate.Run, webhook: invocations.Webhook) -> tuple[str, HttpReply | None]:
    """Sends one invocation; returns a sentence for the run's log and the reply, if any."""
    fault = port.faults.for_delivery(run.action)
    if "delaySeconds" in fault:
        await asyncio.sleep(fault["delaySeconds"])
    body = None if webhook.method == "GET" else compact(webhook.body).encode()
    headers = [
        (name, value) for name, value in webhook.headers.items() if name.lower() not in _RESERVED_HEADERS
    ]
    if body is not None and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", "application/json"))
    named = {name.lower() for name, _ in headers}
    headers += [(name, value) for name, value in _OWN_HEADERS if name.lower() not in named]
    url = own_url(port, webhook.url)
    if url is not None:
        # Port adds the organisation's own authentication when it calls itself.
        headers = [(name, value) for name, value in headers if name.lower() != "authorization"]
        token, _ = port.tokens.issue(port.organization_id, port.settings.token_lifetime_seconds)
        headers += [("Authorization", f"Bearer {token}"), (ORIGIN_HEADER, f"{port.origin_key}:{run.id}")]
    timestamp, signature = _signed(port.credentials.signing_secret, body or b"", fault)
    headers.append(("x-port-timestamp", timestamp))
    if signature is not None:
        headers.append(("x-port-signature", signature))
    record: dict[str, Any] = {
        "runId": run.id,
        "action": run.action,
        "method": webhook.method,
        "url": run.doc["payload"]["url"],
        "own": url is not None,
        "fault": fault,
        "timestamp": timestamp,
        "signature": signature,
        "status": None,
        "error": None,
        "startedAt": time.time(),
    }
    first: tuple[str, HttpReply | None] | None = None
    for _ in range(1 + fault.get("duplicates", 0)):
        attempt = {**record, "startedAt": time.time()}
        try:
            reply = await send(
                webhook.method,
                url or webhook.url,
                headers,
                body,
                port.settings.delivery_timeout_seconds,
                pause_seconds=fault.get("pauseSeconds", 0),
            )
        except SendError as error:
            attempt["error"] = str(error)
            result: tuple[str, HttpReply | None] = (f"The webhook did not answer: {error}.", None)
        else:
            attempt["status"] = reply.status
            result = (f"The webhook answered {reply.status}.", reply)
        attempt["seconds"] = round(time.time() - attempt["startedAt"], 6)
        port.deliveries.append(attempt)
        first = first or result
    if first is None:
        raise AssertionError("an invocation is sent at least once")
    return first


def own_url(port: Port, url: str) -> str | None:
    """Where an address of Port's API leads on this machine; None when it is not Port's."""
    parts = urlsplit(url)
    own = urlsplit(port.base_url)
    here = parts.hostname in ("127.0.0.1", "localhost") and parts.port == own.port
    if not (here or parts.hostname in _PORT_HOSTS) or not parts.path.startswith("/v1/"):
        return None
    return port.base_url + parts.path + (f"?{parts.query}" if parts.query else "")


def _signed(secret: str, body: bytes, fault: dict[str, Any]) -> tuple[str, str | None]:
    moment = time.time()
    timestamp = {
        "old": str(int(moment) - 3600),
        "future": str(int(moment) + 3600),
        "milliseconds": str(int(moment * 1000)),
        "garbage": "yesterday",
    }.get(fault.get("timestamp", ""), str(int(moment)))
    if fault.get("signature") == "missing":
        return timestamp, None
    key = "not the secret" if fault.get("signature") == "wrong" else secret
    return timestamp, sign(key, timestamp, body)


def _upsert_entity(port: Port, run: runstate.Run, method: dict[str, Any]) -> None:
    mapping = {name: value for name, value in method["mapping"].items() if value is not None}
    try:
        with port.store.savepoint():
            entity = entities.upsert(port, method["blueprintIdentifier"], mapping, _Cause(run))
    except ApiError as error:
        _finish(port, run, "FAILURE", f"The entity was refused: {error.message}")
        return
    run.internal.setdefault("entities", []).append(
        {"blueprint": entity["blueprint"], "identifier": entity["identifier"]}
    )
    _finish(port, run, "SUCCESS", f'Entity "{entity["identifier"]}" was written.')


class _Cause:
    def __init__(self, run: runstate.Run) -> None:
        self.chain = run.chain
        self.causing_run: str | None = run.id


def fail_unevaluable(port: Port, run: runstate.Run, error: ApiError) -> None:
    """Ends a run whose invocation cannot be evaluated when it is to be sent."""
    _finish(port, run, "FAILURE", f"The invocation could not be evaluated: {error.message}")


def _finish(port: Port, run: runstate.Run, status: str, line: str) -> None:
    before = runstate.view(port, run, "v2")
    runstate.add_log(port, run.id, line)
    if status == "FAILURE" and not run.doc["summary"]:
        run.doc["summary"] = line
    run.delivery = "none"
    runstate.end(run, status)
    runstate.touch(run, port.user_id)
    runstate.save(port, run)
    automations.run_changed(port, run, before)


def _parsed(body: bytes) -> Any:
    """A reply's JSON, else its text; None when it is empty."""
    text = body.decode("utf-8", errors="replace")
    if not text:
        return None
    try:
        value = json.loads(text)
        compact(value).encode()
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict | list | str) else text
