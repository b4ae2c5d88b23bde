"""The state of one local Port, passed to every route."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from port_webhook_localport.encryption import seal, unseal
from port_webhook_localport.faults import Faults
from port_webhook_localport.home import Credentials
from port_webhook_localport.store import Store
from port_webhook_localport.tokens import Tokens
from port_webhook_localport.web import make_id

MASK = "********"
_KAFKA = "kafka"
# Shorter values would blank out ordinary words.
_SHORTEST_HIDDEN = 4


@dataclass(slots=True)
class Settings:
    """What the admin routes can change; back to these values after a restart or a reset.

    Attributes:
        token_lifetime_seconds: of the next token (Port: three hours).
        rate_limit, rate_limit_period_seconds: calls per period of the organisation.
        rate_limit_reset: unit of `x-ratelimit-reset`; sources about Port name both.
        destination_check: refuse private webhook addresses as Port does.
        delivery_timeout_seconds: for one delivery, connect to last byte.
        hold_deliveries: keep invocations back until this is false again.
        claim_seconds: bound of the time for which an agent may claim a run (Port's: ten minutes).
        permissions_delay_seconds: an action's permissions appear this much after the action.
    """

    token_lifetime_seconds: float = 10_800.0
    rate_limit: int = 100_000
    rate_limit_period_seconds: float = 60.0
    rate_limit_reset: str = "delay"
    destination_check: bool = False
    delivery_timeout_seconds: float = 30.0
    hold_deliveries: bool = False
    claim_seconds: float = 600.0
    permissions_delay_seconds: float = 0.05


@dataclass(slots=True)
class RateWindow:
    """Calls of the current period."""

    started: float = field(default_factory=time.time)
    used: int = 0


class Port:
    """Store, credentials and switches; knows which invocations wait for delivery."""

    def __init__(self, store: Store, credentials: Credentials) -> None:
        self.store = store
        self.credentials = credentials
        self.keep_credentials: Callable[[Credentials], None] = lambda changed: None
        self.tokens = Tokens(store, credentials)
        self.settings = Settings()
        self.faults = Faults()
        self.window = RateWindow()
        self.calls: Counter[str] = Counter()
        self.deliveries: deque[dict[str, Any]] = deque(maxlen=10_000)
        self.base_url = ""
        # Proves that a call comes from an own invocation; never leaves this process but in such a call.
        self.origin_key = secrets.token_hex(16)
        self.stopping = asyncio.Event()
        self._outgoing: list[str] = []
        self._deliver: Callable[[str], None] | None = None
        self._cancel: Callable[[], None] | None = None
        self._revision = 0
        self._hidden: list[str] | None = None

    @property
    def user_id(self) -> str:
        """Id of the machine user that every token belongs to."""
        return self.credentials.client_id

    @property
    def organization_id(self) -> str:
        return str(self.organization()["id"])

    def organization(self) -> dict[str, Any]:
        """The organisation's document, made at first use."""
        document: dict[str, Any] | None = self.store.meta("organization")
        if document is None:
            document = {
                "id": make_id("org"),
                "name": "Local Port",
                "featureFlags": [],
                "settings": {},
            }
            self.store.set_meta("organization", document)
        return document

    def change_credentials(self, changed: Credentials) -> None:
        """Works with other credentials from now on, also after a restart."""
        self.keep_credentials(changed)
        self.credentials = changed

    def secret_values(self) -> dict[str, str]:
        """Every organisation secret in clear text; only for an invocation that is being sent."""
        key = bytes.fromhex(self.credentials.storage_key)
        return {
            name: unseal(value, key, name)
            for name, value in self.store.rows("SELECT name, value FROM secrets")
        }

    @property
    def kafka(self) -> dict[str, Any] | None:
        """Brokers and credentials of the topics, or None; kept over restarts, encrypted."""
        sealed = self.store.meta(_KAFKA)
        if sealed is None:
            return None
        key = bytes.fromhex(self.credentials.storage_key)
        found: dict[str, Any] = json.loads(unseal(bytes.fromhex(sealed), key, _KAFKA))
        return found

    @kafka.setter
    def kafka(self, value: dict[str, Any] | None) -> None:
        if value is None:
            self.store.set_meta(_KAFKA, None)
            return
        key = bytes.fromhex(self.credentials.storage_key)
        self.store.set_meta(_KAFKA, seal(json.dumps(value), key, _KAFKA).hex())

    @property
    def sends_over_kafka(self) -> bool:
        """Whether agent runs go to the topic: the organisation's setting, by default if there is a broker."""
        chosen = self.organization()["settings"].get("portAgentStreamerName")
        return self.kafka is not None and chosen in (None, "KAFKA")

    def masked_secrets(self) -> dict[str, str]:
        return {name: MASK for (name,) in self.store.rows("SELECT name FROM secrets")}

    def secrets_changed(self) -> None:
        self._hidden = None

    def mask(self, text: str) -> str:
        """`text` as it may be shown: values of secrets that somebody sent back are replaced by stars."""
        if self._hidden is None:
            values = self.secret_values().values()
            self._hidden = sorted((v for v in values if len(v) >= _SHORTEST_HIDDEN), key=len, reverse=True)
        for value in self._hidden:
            text = text.replace(value, MASK)
        return text

    def mask_all(self, value: Any) -> Any:
        """A JSON value with `mask` applied to every text in it."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, list):
            return [self.mask_all(item) for item in value]
        if isinstance(value, dict):
            return {self.mask(key): self.mask_all(item) for key, item in value.items()}
        return value

    @property
    def revision(self) -> int:
        """Changes whenever a definition does; caches of definitions compare it."""
        return self._revision

    def definitions_changed(self) -> None:
        self._revision += 1

    @contextmanager
    def change(self) -> Iterator[None]:
        """A transaction; invocations queued inside are delivered once it is committed."""
        held = len(self._outgoing)
        try:
            with self.store.transaction():
                yield
        except BaseException:
            del self._outgoing[held:]
            self._revision += 1
            raise
        self.flush()

    def queue_delivery(self, run_id: str) -> None:
        """Has a run's invocation delivered after the present transaction."""
        self._outgoing.append(run_id)

    def deliver_with(self, deliver: Callable[[str], None], cancel: Callable[[], None]) -> None:
        """Names the functions that start a delivery and that give all of them up."""
        self._deliver, self._cancel = deliver, cancel

    def forget_deliveries(self) -> None:
        """Gives up what waits or is under way."""
        self._outgoing.clear()
        if self._cancel is not None:
            self._cancel()

    def flush(self) -> None:
        if self._deliver is None or self.settings.hold_deliveries:
            return
        ready, self._outgoing = self._outgoing, []
        for run_id in ready:
            self._deliver(run_id)
