"""Port's protocol: definitions, templates, signatures, and the client of its API.

Names are loaded on first use, so that the listener pays only for what verifies a request.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from port_webhook_handlers.port.builders import (
        any_entity_change,
        any_run_change,
        entity_created,
        entity_deleted,
        entity_updated,
        jq,
        run_created,
        run_updated,
        self_service,
        timer_expired,
    )
    from port_webhook_handlers.port.definitions import (
        Action,
        ArrayInput,
        Automation,
        AzureDevOps,
        BooleanInput,
        Definition,
        DefinitionError,
        EntityMapping,
        GitHub,
        GitLab,
        IntegrationAction,
        Kafka,
        NumberInput,
        ObjectInput,
        StringInput,
        UpsertEntity,
        Webhook,
        definition_from_body,
        definition_to_body,
    )
    from port_webhook_handlers.port.names import Route

_BUILDERS = [
    "any_entity_change",
    "any_run_change",
    "entity_created",
    "entity_deleted",
    "entity_updated",
    "jq",
    "run_created",
    "run_updated",
    "self_service",
    "timer_expired",
]

__all__ = [
    "Action",
    "ArrayInput",
    "Automation",
    "AzureDevOps",
    "BooleanInput",
    "Definition",
    "DefinitionError",
    "EntityMapping",
    "GitHub",
    "GitLab",
    "IntegrationAction",
    "Kafka",
    "NumberInput",
    "ObjectInput",
    "Route",
    "StringInput",
    "UpsertEntity",
    "Webhook",
    "any_entity_change",
    "any_run_change",
    "definition_from_body",
    "definition_to_body",
    "entity_created",
    "entity_deleted",
    "entity_updated",
    "jq",
    "run_created",
    "run_updated",
    "self_service",
    "timer_expired",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "builders" if name in _BUILDERS else "names" if name == "Route" else "definitions"
    return getattr(import_module(f"{__name__}.{home}"), name)
