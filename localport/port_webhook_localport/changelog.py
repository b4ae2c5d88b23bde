"""The change log: an entity's changes, for the destination that its blueprint names (`changelogDestination`).

| destination | where a change goes |
|---|---|
| `{"type": "KAFKA"}` | the topic `<organisation>.change.log` |
| `{"type": "WEBHOOK", "url": …, "agent": true}` | the same topic, with the destination in the message |
| `{"type": "WEBHOOK", "url": …}` | straight to the URL |

Changes wait in the store and leave it in their order. Without a broker there is no topic, so nothing is kept for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from port_webhook_localport import automations
from port_webhook_localport.http_client import SendError, send
from port_webhook_localport.kafka import Publisher, PublishError
from port_webhook_localport.port import Port
from port_webhook_localport.signature import sign
from port_webhook_localport.web import compact

_LOG = logging.getLogger("port_webhook_localport")
QUEUE = "change log"


def note(
    port: Port,
    model: dict[str, Any],
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    chain: tuple[str, ...],
) -> None:
    """Keeps a change for the blueprint's destination, if it has one."""
    destination = model.get("changelogDestination")
    subject = after or before
    if not isinstance(destination, dict) or subject is None:
        return
    to_topic = destination.get("type") == "KAFKA" or destination.get("agent") is True
    if to_topic and port.kafka is None:
        return
    change = {
        "action": "CREATE" if before is None else "DELETE" if after is None else "UPDATE",
        "resourceType": "entity",
        "status": "SUCCESS",
        "trigger": automations.trigger(port, chain),
        "context": {"entity": subject["identifier"], "blueprint": subject["blueprint"]},
        "diff": {"before": before, "after": after},
    }
    if destination.get("type") == "WEBHOOK":
        change["changelogDestination"] = destination
    port.store.run("INSERT INTO changes (topic, doc) VALUES (?, ?)", (to_topic, compact(change)))
    port.queue_delivery(QUEUE)


async def send_waiting(port: Port, publisher: Publisher) -> None:
    """Sends what waits, oldest first; what the broker does not take stays for the next change or start."""
    while (row := port.store.row("SELECT seq, topic, doc FROM changes ORDER BY seq LIMIT 1")) is not None:
        number, to_topic, text = row
        if to_topic:
            try:
                await _publish(port, publisher, text)
            except PublishError as error:
                _LOG.warning("a change was not written to the topic: %s", error)
                return
        else:
            await _post(port, text)
        with port.change():
            port.store.run("DELETE FROM changes WHERE seq = ?", (number,))


async def _publish(port: Port, publisher: Publisher, text: str) -> None:
    settings = port.kafka
    if settings is None:
        return
    topic, key = f"{port.organization_id}.change.log", json.loads(text)["context"]["entity"]
    await asyncio.to_thread(publisher.publish, settings, topic, key, text.encode())


async def _post(port: Port, text: str) -> None:
    """One attempt, as with invocations: Port's documentation speaks of no second one."""
    timestamp, body = str(int(time.time())), text.encode()
    headers = [
        ("Content-Type", "application/json"),
        ("User-Agent", "port-local"),
        ("x-port-timestamp", timestamp),
        ("x-port-signature", sign(port.credentials.signing_secret, timestamp, body)),
    ]
    url = json.loads(text)["changelogDestination"].get("url", "")
    try:
        await send("POST", url, headers, body, port.settings.delivery_timeout_seconds)
    except (SendError, ValueError) as error:
        _LOG.warning("a change was not delivered: %s", error)
