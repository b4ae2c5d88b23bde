"""Existing objects of Port as code, and as resources of a stack."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from port_webhook_handlers.port.client import PortClient, quote

if TYPE_CHECKING:
    from port_webhook_stack.driver import StackDriver
    from port_webhook_stack.importing import ImportedResource

MODULE_FILE = "port_definitions.py"
IMPORT_FILE = "import.json"
COMPONENT_TYPE = "port-webhook:index:WebhookStack"

_PREFIX = "port-webhook:index:"


class ImportFileError(ValueError):
    """An import file that cannot be used; the message names the place and the remedy."""


@dataclass(frozen=True)
class Written:
    """What `write` has written.

    Attributes:
        module: the Python module.
        resources: the file for `port-webhook import --file` (and for `pulumi import --file`).
        warnings: what lint says about the definitions.
    """

    module: Path
    resources: Path
    count: int
    warnings: Sequence[str]


def fetch(client: PortClient, identifiers: Collection[str]) -> list[dict[str, Any]]:
    """Actions and automations as Port has them; all of them if no identifier is given.

    Raises:
        PortError: Port cannot be asked, or has no such action.
    """
    if not identifiers:
        found: list[dict[str, Any]] = client.request("GET", "/v1/actions", params={"version": "v2"})[
            "actions"
        ]
        return found
    return [
        client.request("GET", f"/v1/actions/{quote(name)}")["action"] for name in dict.fromkeys(identifiers)
    ]


def write(actions: Sequence[Mapping[str, Any]], folder: Path, component_urn: str) -> Written:
    """Writes a module with the definitions, and the file that imports them under a `WebhookStack`.

    Args:
        component_urn: URN of the component that will declare them.
    """
    from port_webhook_handlers.port.lint import lint
    from port_webhook_stack.code import module
    from port_webhook_stack.port.normalise import SERVER_MEMBERS

    bodies = [
        {key: value for key, value in action.items() if key not in SERVER_MEMBERS and value is not None}
        for action in actions
    ]
    component = component_urn.rpartition("::")[2]
    resources = [
        {
            "type": f"{_PREFIX}{'Automation' if _is_automation(body) else 'Action'}",
            "name": f"{component}-{'automation' if _is_automation(body) else 'action'}-{body['identifier']}",
            "id": body["identifier"],
            "parent": component,
        }
        for body in bodies
    ]
    folder.mkdir(parents=True, exist_ok=True)
    code, imports = folder / MODULE_FILE, folder / IMPORT_FILE
    code.write_text(module(bodies), encoding="utf-8")
    content = {"nameTable": {component: component_urn}, "resources": resources}
    imports.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Written(code, imports, len(bodies), [str(finding) for finding in lint(bodies)])


def full_type(name: str) -> str:
    """The type token for `Action` as for `port-webhook:index:Action`."""
    return name if ":" in name else f"{_PREFIX}{name}"


def from_file(path: Path, driver: StackDriver) -> list[ImportedResource]:
    """The resources of an import file, in the form that `pulumi import --file` takes.

    Raises:
        ImportFileError: it is no such file.
    """
    from port_webhook_stack.importing import ImportedResource

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = content.get("nameTable") or {}
        items = [
            (item["type"], item["name"], item["id"], names[item["parent"]] if item.get("parent") else "")
            for item in content["resources"]
        ]
    except OSError as error:
        raise ImportFileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImportFileError(
            f"{path} is no import file ({type(error).__name__}: {error}); write it with import-code"
        ) from None
    paths = {urn: driver.path_to(urn.rpartition("::")[2]) for *_, urn in items if urn}
    return [ImportedResource(kind, name, id, paths.get(urn, ())) for kind, name, id, urn in items]


def _is_automation(body: Mapping[str, Any]) -> bool:
    return bool(body.get("trigger", {}).get("type") == "automation")
