"""Takes existing objects of Port into a stack's state.

`pulumi import` needs the language host of the project, which a CLI built from the Go module lacks. A targeted
update with the option `import` is the same step of the engine, and needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pulumi

from port_webhook_handlers.port.client import PortError
from port_webhook_stack.port.configuration import KEYS, PACKAGE
from port_webhook_stack.port.handler import Context, ProviderError
from port_webhook_stack.port.provider import Provider, handler


@dataclass(frozen=True, slots=True)
class ImportedResource:
    """An existing object that becomes a resource of the stack.

    Attributes:
        type: its type token, for example `port-webhook:index:Action`.
        name: Pulumi's name, as the program declares it.
        id: what the type's documentation calls its id for imports.
        parents: the components around it as (type, name), outermost first; none for the stack itself.
    """

    type: str
    name: str
    id: str
    parents: tuple[tuple[str, str], ...] = ()

    def urn(self, stack: str, project: str) -> str:
        """The URN that it gets."""
        types = "$".join([*(type for type, _ in self.parents), self.type])
        return f"urn:pulumi:{stack}::{project}::{types}::{self.name}"


def program(resources: Sequence[ImportedResource], outputs: Mapping[str, Any]) -> Callable[[], None]:
    """A program that declares the resources as they are in Port, and nothing else.

    Args:
        outputs: the stack's outputs, which an update without them would forget.
    """

    def declare() -> None:
        with _provider() as context:
            found = [(resource, _read(context, resource)) for resource in resources]
        components: dict[tuple[tuple[str, str], ...], pulumi.ComponentResource] = {}
        for resource, inputs in found:
            parent = None
            for depth, (type, name) in enumerate(resource.parents, 1):
                path = resource.parents[:depth]
                if path not in components:
                    components[path] = pulumi.ComponentResource(
                        type, name, opts=pulumi.ResourceOptions(parent=parent)
                    )
                parent = components[path]
            options = pulumi.ResourceOptions(import_=resource.id, parent=parent)
            pulumi.CustomResource(resource.type, resource.name, inputs, options)
        for name, value in outputs.items():
            pulumi.export(name, value)

    return declare


class _Log:
    """Lines of a handler in the engine's output."""

    def debug(self, message: str) -> None:
        pulumi.log.debug(message)

    def info(self, message: str) -> None:
        pulumi.log.info(message)

    def warning(self, message: str) -> None:
        pulumi.log.warn(message)


@contextmanager
def _provider() -> Iterator[Context]:
    """The stack's own provider, in this process."""
    settings = pulumi.Config(PACKAGE)
    given = {key: value for key in KEYS if (value := settings.get(key)) is not None}
    urn = f"urn:pulumi:{pulumi.get_stack()}::{pulumi.get_project()}::pulumi:providers:{PACKAGE}::default"
    provider = Provider()
    try:
        checked = provider.check_config(urn, given, {})
        if checked.failures:
            failure = checked.failures[0]
            raise pulumi.RunError(f"{PACKAGE}:{failure.property}: {failure.reason}")
        provider.configure({**given, **checked.inputs})
        yield provider.context(urn, _Log())
    except (ProviderError, PortError) as error:
        raise pulumi.RunError(str(error)) from error
    finally:
        provider.close()


def _read(context: Context, resource: ImportedResource) -> Mapping[str, Any]:
    found = handler(resource.type).read(context, resource.id, {}, {})
    if found is None:
        raise ProviderError(
            f"{resource.id}: Port has no such object of type {resource.type}; check type and id"
        )
    return found.inputs
