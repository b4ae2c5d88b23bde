"""The sink that claims runs in the ledger of the listener in the same process: no endpoint is needed at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from port_webhook_handlers.agent.core import RetryLaterError
from port_webhook_handlers.agent.messages import Message
from port_webhook_handlers.agent.reports import NOTHING, Outcome
from port_webhook_handlers.port.compact_json import compact
from port_webhook_handlers.runtime.receiver import RefusedError

if TYPE_CHECKING:
    from port_webhook_handlers.runtime.ledger import Ledger
    from port_webhook_handlers.runtime.receiver import Receiver


class DirectSink:
    """Hands messages to the receiver, which validates and claims them like requests.

    An asynchronous run is acknowledged once it is in the ledger, and reported by the listener's outbox. A
    synchronous one is reported by the agent, because its answer has no other way to Port.

    Args:
        receiver, ledger: the listener's.
    """

    def __init__(self, receiver: Receiver, ledger: Ledger) -> None:
        self._receiver = receiver
        self._ledger = ledger

    async def deliver_many(self, messages: Sequence[Message]) -> list[bool]:
        """Claims what is new and in order, all at once; see `core.Sink`."""
        receiver = self._receiver
        if receiver.stopping or receiver.overloaded:
            return [False] * len(messages)
        return await receiver.take_many(
            [
                (message.route or "", message.body, message.raw or compact(message.body).encode())
                for message in messages
            ],
            self._ledger.claim_many,
        )

    async def deliver(self, message: Message) -> Outcome:
        """One attempt; see `core.Sink`."""
        receiver = self._receiver
        if receiver.stopping or receiver.overloaded:
            # Nothing is lost by waiting: the message stays with Port.
            raise RetryLaterError("The listener takes no runs at the moment.", lasting=True)
        body = message.body
        if not isinstance(body, dict) or message.route is None:
            return Outcome(
                "failed", "FAILURE", "The message is no invocation of a handler: it names no action."
            )
        raw = message.raw or compact(body).encode()
        try:
            response = await receiver.take(message.route, body, raw)
        except RefusedError as refusal:
            if refusal.status == 503:
                raise RetryLaterError(refusal.message, lasting=True) from None
            if refusal.reason == "run_id_reused":
                # The run with this id is on its way, and nobody may end it because of another message.
                return Outcome("settled")
            return Outcome("failed", "FAILURE", refusal.summary())
        if not receiver.is_synchronous(message.route):
            return Outcome("delivered")
        answer = json.loads(response.body)
        succeeded = 200 <= response.status < 300
        summary = None if succeeded else f"The handler answered {response.status}."
        if not succeeded and isinstance(answer, dict) and isinstance(answer.get("message"), str):
            summary = answer["message"]
        return Outcome(
            "delivered" if succeeded else "failed",
            "SUCCESS" if succeeded else "FAILURE",
            summary,
            response=answer if isinstance(answer, dict | list | str) else NOTHING,
        )
