"""How Port invokes the backend of an action or automation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from port_webhook_handlers.port.definitions.node import (
    BOOLEAN,
    LIST,
    OBJECT,
    STRING,
    STRING_MAP,
    STRINGS,
    Json,
    Node,
    NodeOf,
    either,
    needs,
    opt,
)

FLAG_OR_TEMPLATE = either(BOOLEAN, STRING)
PAYLOAD = either(OBJECT, LIST)


@dataclass(frozen=True)
class InvocationMethod(Node):
    """Any way of invocation."""

    MEANING: ClassVar = "an invocation method"


@dataclass(frozen=True)
class Webhook(InvocationMethod):
    """An HTTP request, signed by Port.

    Attributes:
        url: a URL template, a `Route`, or what `port_api` builds.
        synchronized: Port ends the run by the answer's status; a boolean or a `{{ … }}` template.
        agent: Port hands the request to the execution agent; a boolean or a `{{ … }}` template.
        method: Port sends POST if absent.
        body: what is sent, with templates; nothing is wrapped around it.
    """

    TYPE: ClassVar = "WEBHOOK"

    url: str = field(metadata=needs(STRING))
    agent: bool | str | None = field(default=None, metadata=opt(FLAG_OR_TEMPLATE))
    synchronized: bool | str | None = field(default=None, metadata=opt(FLAG_OR_TEMPLATE))
    method: str | None = field(
        default=None, metadata=opt(STRING, choices=("POST", "PUT", "PATCH", "DELETE", "GET"), closed=False)
    )
    headers: Mapping[str, str] | None = field(default=None, metadata=opt(STRING_MAP))
    body: Mapping[str, Json] | Sequence[Json] | None = field(default=None, metadata=opt(PAYLOAD))


@dataclass(frozen=True)
class Kafka(InvocationMethod):
    """A message on the organisation's own topic."""

    TYPE: ClassVar = "KAFKA"

    payload: Mapping[str, Json] | Sequence[Json] | None = field(default=None, metadata=opt(PAYLOAD))


@dataclass(frozen=True)
class GitHub(InvocationMethod):
    """A workflow of GitHub Actions."""

    TYPE: ClassVar = "GITHUB"

    org: str = field(metadata=needs(STRING))
    repo: str = field(metadata=needs(STRING))
    workflow: str = field(metadata=needs(STRING))
    workflow_inputs: Mapping[str, Json] | None = field(default=None, metadata=opt(OBJECT))
    report_workflow_status: bool | str | None = field(default=None, metadata=opt(FLAG_OR_TEMPLATE))


@dataclass(frozen=True)
class GitLab(InvocationMethod):
    """A pipeline of GitLab."""

    TYPE: ClassVar = "GITLAB"

    project_name: str = field(metadata=needs(STRING))
    group_name: str = field(metadata=needs(STRING))
    default_ref: str | None = field(default=None, metadata=opt(STRING))
    pipeline_variables: Mapping[str, Json] | None = field(default=None, metadata=opt(OBJECT))


@dataclass(frozen=True)
class AzureDevOps(InvocationMethod):
    """An incoming webhook of Azure DevOps."""

    TYPE: ClassVar = "AZURE_DEVOPS"

    webhook: str = field(metadata=needs(STRING))
    org: str = field(metadata=needs(STRING))
    payload: Mapping[str, Json] | Sequence[Json] | None = field(default=None, metadata=opt(PAYLOAD))


@dataclass(frozen=True)
class EntityMapping(Node):
    """The entity that UPSERT_ENTITY writes; every value may be a template."""

    identifier: str | None = field(default=None, metadata=opt(STRING))
    title: str | None = field(default=None, metadata=opt(STRING))
    icon: str | None = field(default=None, metadata=opt(STRING))
    team: str | Sequence[str] | None = field(default=None, metadata=opt(either(STRING, STRINGS)))
    properties: Mapping[str, Json] | None = field(default=None, metadata=opt(OBJECT))
    relations: Mapping[str, Json] | None = field(default=None, metadata=opt(OBJECT))


@dataclass(frozen=True)
class UpsertEntity(InvocationMethod):
    """Port creates or updates an entity itself."""

    TYPE: ClassVar = "UPSERT_ENTITY"

    blueprint_identifier: str = field(metadata=needs(STRING))
    mapping: EntityMapping | None = field(default=None, metadata=opt(NodeOf(EntityMapping)))


@dataclass(frozen=True)
class WorkflowDispatch(Node):
    """What the integration action `dispatch_workflow` executes."""

    STRICT: ClassVar = False

    org: str | None = field(default=None, metadata=opt(STRING))
    repo: str | None = field(default=None, metadata=opt(STRING))
    workflow: str | None = field(default=None, metadata=opt(STRING))
    workflow_inputs: Mapping[str, Json] | None = field(default=None, metadata=opt(OBJECT))
    report_workflow_status: bool | str | None = field(default=None, metadata=opt(FLAG_OR_TEMPLATE))


@dataclass(frozen=True)
class IntegrationAction(InvocationMethod):
    """An action of an integration that is installed in the organisation."""

    TYPE: ClassVar = "INTEGRATION_ACTION"

    installation_id: str = field(metadata=needs(STRING))
    integration_action_type: str = field(metadata=needs(STRING, choices=("dispatch_workflow",), closed=False))
    integration_action_execution_properties: WorkflowDispatch | None = field(
        default=None, metadata=opt(NodeOf(WorkflowDispatch))
    )


@dataclass(frozen=True)
class OtherMethod(InvocationMethod):
    """A method whose type Port's API reference does not list, such as SLACK; its keys are in `extra`."""

    STRICT: ClassVar = False

    type: str = field(metadata=needs(STRING))


METHODS: dict[str, type[InvocationMethod]] = {
    cls.TYPE: cls for cls in (Webhook, Kafka, GitHub, GitLab, AzureDevOps, UpsertEntity, IntegrationAction)
}


def method_class(body: Mapping[str, Json]) -> type[InvocationMethod]:
    """The class of an invocation method, by its `type`."""
    name = body.get("type")
    return METHODS.get(name, OtherMethod) if isinstance(name, str) else OtherMethod


METHOD = NodeOf(InvocationMethod, method_class)
