"""Port's protocol: definitions, templates, signatures, and the client of its API.

Names are loaded on first use, so that the listener pays only for what verifies a request.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from port_webhook_handlers.port.definitions import (
        Action,
        Automation,
        Definition,
        DefinitionError,
        definition_from_body,
        definition_to_body,
    )

__all__ = [
    "Action",
    "Automation",
    "Definition",
    "DefinitionError",
    "definition_from_body",
    "definition_to_body",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.definitions"), name)
