"""The forms of requests that Port's own material shows, for `payload=` of `@action` and `@automation`."""

from port_webhook_handlers.port.payload import (
    ENVELOPE,
    LEGACY,
    RUN_ID_HEADER,
    SNAKE_CASE,
    SPREAD,
    UI,
    Payload,
)

__all__ = ["ENVELOPE", "LEGACY", "RUN_ID_HEADER", "SNAKE_CASE", "SPREAD", "UI", "Payload"]
