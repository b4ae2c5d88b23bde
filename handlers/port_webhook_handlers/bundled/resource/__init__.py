"""Creates and deletes cloud resources, by a command or a Pulumi program that the settings name.

The entity says what there is: `Creating` before anything is made, so that what an interrupted run has left can be
deleted like any other resource.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from port_webhook_handlers.bundled.catalog import Catalog
from port_webhook_handlers.bundled.catalog import Kind as Blueprint
from port_webhook_handlers.bundled.options import folders
from port_webhook_handlers.bundled.resource.kinds import SECRET, Kind, Order, ProvisionError
from port_webhook_handlers.sdk import (
    Entity,
    Failure,
    Field,
    Inputs,
    Result,
    Run,
    SettingError,
    Success,
    User,
    action,
)

# Kept back from the handler's time, so that it can still clean up and report.
_RESERVE_SECONDS = 20


class ResourceInputs(Inputs):
    """What the form asks."""

    identifier: Annotated[
        str, Field(title="Identifier", pattern=r"[a-z]([a-z0-9-]*[a-z0-9])?", max_length=50)
    ]
    kind: Annotated[str, Field(title="Kind", pattern=r"[A-Za-z0-9_.-]+", max_length=100)]
    parameters: Annotated[dict[str, str] | None, Field(title="Parameters")] = None
    owner: Annotated[User | None, Field(title="Owner")] = None
    expires_at: Annotated[
        datetime | None, Field(title="Expires at", description="Then it is deleted", key="expiresAt")
    ] = None


@action(
    "create_resource",
    title="Create a resource",
    description="Creates a cloud resource of a kind that the platform offers.",
    icon="Cloud",
    operation="CREATE",
    method="POST",
    secrets=[SECRET],
)
def create_resource(inputs: ResourceInputs, run: Run) -> Result:
    """Creates the resource and its entity, with the outputs."""
    try:
        catalog = Catalog.of(run.settings)
        kind = Kind.of(run.settings, inputs.kind)
        parameters = kind.check(inputs.parameters or {})
        order = _order(run, inputs.identifier, parameters, kind.seconds)
        record = _record(order)
        try:
            with record.open("x", encoding="utf-8") as file:
                try:
                    json.dump({"kind": kind.name, "parameters": parameters}, file)
                    file.flush()
                except OSError:
                    # Half a record would keep the identifier from whoever tries again.
                    record.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            return Failure(
                f"resource {inputs.identifier} exists already; choose another identifier, or delete it first"
            )
        except OSError as error:
            raise _unusable(record.parent, error) from error
    except SettingError as error:
        return Failure(str(error))
    properties: dict[str, Any] = {
        "kind": kind.name,
        "status": "Creating",
        "parameters": parameters,
        "run": run.id,
    }
    properties |= {"owner": inputs.owner} if inputs.owner else {}
    properties |= {"expiresAt": inputs.expires_at} if inputs.expires_at else {}
    entity = catalog.resource
    entity.upsert(
        run,
        inputs.identifier,
        title=inputs.identifier,
        properties=properties,
        relations=catalog.in_environment or None,
    )
    run.progress("Creating")
    try:
        outputs = kind.provisioner.create(order)
    except SettingError as error:
        # Settings are checked before anything is made.
        record.unlink()
        entity.delete(run, inputs.identifier)
        return Failure(str(error))
    except ProvisionError as error:
        entity.upsert(run, inputs.identifier, properties={"status": "Failed"})
        return Failure(
            f"{error}. What was made before that is still there: delete the resource to remove it."
        )
    entity.upsert(run, inputs.identifier, properties={"status": "Ready", "outputs": outputs})
    shown = ", ".join(f"{name} = {value}" for name, value in outputs.items())
    return Success(f"{kind.name} {inputs.identifier} is ready{f': {shown}' if shown else ''}")


@action(
    "delete_resource",
    title="Delete a resource",
    description="Removes the resource from the cloud, then from the catalog.",
    icon="Delete",
    blueprint="resource",
    operation="DELETE",
    method="DELETE",
    secrets=[SECRET],
    on_interrupt="retry",
)
def delete_resource(run: Run) -> Result:
    """Deletes the resource that the action was run on."""
    return tear_down(run, run.entity)


def tear_down(run: Run, entity: Entity) -> Result:
    """Removes a resource, and its entity once it is gone; safe to repeat."""
    try:
        resource = Catalog.of(run.settings).resource
    except SettingError as error:
        return Failure(str(error))
    try:
        order = _order(run, entity.identifier, {})
        name, given = _known(order, entity, resource)
        kind = Kind.of(run.settings, name)
        order = _order(run, entity.identifier, kind.check(given), kind.seconds)
        resource.upsert(run, entity.identifier, properties={"status": "Deleting"})
        run.progress("Deleting")
        kind.provisioner.delete(order)
    except (ProvisionError, SettingError) as error:
        resource.upsert(run, entity.identifier, properties={"status": "Failed"})
        return Failure(f"{error}. The resource may still be there.")
    _record(order).unlink(missing_ok=True)
    resource.delete(run, entity.identifier)
    return Success(f"{name} {entity.identifier} is deleted")


def _order(run: Run, identifier: str, parameters: Mapping[str, str], seconds: float | None = None) -> Order:
    state, project = folders(run.settings)
    left = max(1.0, run.seconds_left - _RESERVE_SECONDS)
    records = state / "resources" / "records"
    try:
        records.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unusable(records, error) from error
    return Order(
        identifier=identifier,
        parameters=parameters,
        secret=run.secret(SECRET),
        state=state,
        project=project,
        report=run.log,
        timeout_seconds=left if seconds is None else min(left, seconds),
        again=run.attempt > 1,
    )


def _unusable(folder: Path, error: OSError) -> SettingError:
    return SettingError(
        f"the folder {folder} cannot be used: {error.strerror}; make room or correct its permissions"
    )


def _record(order: Order) -> Path:
    # Entities may be made by hand: only what `create_resource` accepts is a name of a file.
    if "/" in order.identifier or order.identifier.startswith("."):
        raise SettingError(f"{order.identifier} is no identifier of a resource that create_resource has made")
    return order.state / "resources" / "records" / f"{order.identifier}.json"


def _known(order: Order, entity: Entity, resource: Blueprint) -> tuple[str, Mapping[str, Any]]:
    """Kind and parameters as they were created; an entity can be edited in Port, so it is the second choice."""
    try:
        values = json.loads(_record(order).read_text(encoding="utf-8"))
        return str(values["kind"]), dict(values["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    name, parameters = resource.value(entity, "kind"), resource.value(entity, "parameters") or {}
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise SettingError(
            f"what kind of resource {entity.identifier} is is not known; set its property kind"
        )
    return name, parameters
