"""Handlers of the flows that tests/engine/test_flows.py drives; `@@PUBLIC_KEY@@` is filled in there."""

from __future__ import annotations

import hashlib
import time
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

from port_webhook_handlers.sdk import (
    Blueprint,
    ClientSideKey,
    Email,
    Entity,
    Failure,
    Field,
    Inputs,
    Ipv4,
    Ipv6,
    LabeledUrl,
    Markdown,
    MultiLine,
    Proto,
    Result,
    Run,
    Step,
    Success,
    Team,
    Title,
    Url,
    User,
    Yaml,
    action,
    automation,
    jq,
    payloads,
    triggers,
)


class Echo(Inputs):
    text: Annotated[str, Field(max_length=200)]
    fail: bool = False


def echo(inputs: Echo, run: Run) -> Result:
    run.log(f"got {inputs.text}")
    if inputs.fail:
        return Failure(f"failed as asked: {inputs.text}")
    return Success(f"echoed {inputs.text}", link="https://example.com/echo", response={"text": inputs.text})


@action("echo_async_post", title="Echo", operation="CREATE")
def echo_async_post(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("echo_async_put", title="Echo", operation="CREATE", method="PUT")
def echo_async_put(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("echo_async_patch", title="Echo", operation="CREATE", method="PATCH")
def echo_async_patch(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("echo_async_delete", title="Echo", operation="CREATE", method="DELETE")
def echo_async_delete(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("echo_sync_post", title="Echo", operation="CREATE", mode="sync")
def echo_sync_post(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("echo_sync_put", title="Echo", operation="CREATE", mode="sync", method="PUT")
def echo_sync_put(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("echo_sync_patch", title="Echo", operation="CREATE", mode="sync", method="PATCH")
def echo_sync_patch(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("echo_sync_delete", title="Echo", operation="CREATE", mode="sync", method="DELETE")
def echo_sync_delete(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


# --- Secrets -------------------------------------------------------------------------------------------


class Secretive(Inputs):
    password: Annotated[str, Field(encrypted=True, min_length=8)]
    config: Annotated[dict[str, Any], Field(encrypted=True)]
    sealed: Annotated[str | None, Field(encrypted=ClientSideKey("""@@PUBLIC_KEY@@"""))] = None


@action("use_secrets", title="Use secrets", operation="CREATE", secrets=["HANDLER_TOKEN"])
def use_secrets(inputs: Secretive, run: Run) -> Success:
    """Uses every secret, and is careless with them."""
    token = run.secret("HANDLER_TOKEN")
    print("token", token, flush=True)
    run.log(f"calling with {token}")
    values = [inputs.password, inputs.config["key"], inputs.sealed or "", token]
    return Success(" ".join(hashlib.sha256(value.encode()).hexdigest() for value in values))


# --- Every type of input -------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Nested(Inputs):
    depth: int
    name: str = "n"


class Everything(
    Inputs,
    titles={"heading": Title("More", description="The rest")},
    steps=[
        Step(
            "Texts", ["text", "choice", "colour", "dynamic", "hidden", "yaml", "markdown", "proto", "lines"]
        ),
        Step("Values", ["number", "whole", "flag", "moment", "obj", "nested", "texts", "numbers", "objects"]),
        Step(
            "References",
            ["heading", "url", "email", "ip4", "ip6", "owner", "team", "link", "service", "services"],
            visible=jq(".form.flag"),
        ),
    ],
):
    text: Annotated[str, Field(title="Text", pattern=r"[a-z]+\d*", min_length=2, max_length=6, icon="Text")]
    choice: Literal["small", "large"] = "small"
    colour: Annotated[Colour, Field(enum_colors={"red": "red", "green": "green"})] = Colour.RED
    dynamic: Annotated[str | None, Field(enum=jq('["a", "b"]'), default=jq('"a"'), depends_on=["choice"])] = (
        None
    )
    hidden: Annotated[str | None, Field(visible=jq('.form.choice == "large"'), disabled=False)] = None
    yaml: Yaml | None = None
    markdown: Markdown | None = None
    proto: Proto | None = None
    lines: MultiLine | None = None
    number: Annotated[float, Field(minimum=0.5, maximum=10)] = 1.5
    whole: Annotated[int, Field(minimum=1)] = 1
    flag: bool = False
    moment: datetime | None = None
    obj: dict[str, Any] | None = None
    nested: Nested | None = None
    texts: Annotated[list[Annotated[str, Field(max_length=3)]] | None, Field(min_items=1, max_items=2)] = None
    numbers: list[float] | None = None
    objects: list[dict[str, Any]] | None = None
    url: Url | None = None
    email: Email | None = None
    ip4: Ipv4 | None = None
    ip6: Ipv6 | None = None
    owner: User | None = None
    team: Team | None = None
    link: LabeledUrl | None = None
    service: Annotated[
        Entity | None,
        Blueprint("service"),
        Field(dataset=[{"property": "language", "operator": "=", "value": "Python"}], sort=("$title", "ASC")),
    ] = None
    services: Annotated[list[Entity] | None, Blueprint("service")] = None


@action("everything", title="Everything", operation="CREATE", mode="sync")
def everything(inputs: Everything) -> Success:
    seen = {name: type(getattr(inputs, name)).__name__ for name in inputs.__annotations__}
    return Success(
        response={
            "types": {name: kind for name, kind in seen.items() if kind != "NoneType"},
            "service": inputs.service.title if inputs.service else None,
            "services": [item.properties.get("language") for item in inputs.services or []],
        }
    )


@action("everything_async", title="Everything, later", operation="CREATE")
def everything_async(inputs: Everything) -> Success:
    return Success(summary=f"text is {inputs.text}")


# --- Automations ---------------------------------------------------------------------------------------


def note(run: Run, name: str) -> Success:
    """Leaves an entity that tells what the automation saw."""
    event = run.event
    assert event is not None
    subject = event.after or event.before or {}
    run.upsert_entity(
        "sighting",
        f"{name}-{subject.get('identifier') or subject.get('id')}-{event.action}",
        properties={
            "automation": name,
            "action": event.action,
            "before": event.before,
            "after": event.after,
            "context": dict(event.context),
            "origin": run.trigger.origin,
        },
    )
    return Success(summary=f"{name} saw {event.action}")


@automation("on_created", trigger=triggers.entity_created("subject"))
def on_created(run: Run) -> Success:
    return note(run, "on_created")


@automation(
    "on_updated",
    trigger=triggers.entity_updated("subject"),
    condition=[
        ".diff.before.properties.tier != .diff.after.properties.tier",
        ".diff.after.identifier != null",
    ],
)
def on_updated(run: Run) -> Success:
    return note(run, "on_updated")


@automation("on_deleted", trigger=triggers.entity_deleted("subject"), mode="sync")
def on_deleted(run: Run) -> Success:
    return note(run, "on_deleted")


@automation("on_any", trigger=triggers.any_entity_change("subject"), method="PUT")
def on_any(run: Run) -> Success:
    return note(run, "on_any")


@automation("on_timer", trigger=triggers.timer_expired("subject", "expires"))
def on_timer(run: Run) -> Success:
    return note(run, "on_timer")


@automation("on_run_created", trigger=triggers.run_created("echo_async_put"))
def on_run_created(run: Run) -> Success:
    return note(run, "on_run_created")


@automation(
    "on_run_updated",
    trigger=triggers.run_updated("echo_async_put"),
    condition='.diff.after.status == "SUCCESS"',
)
def on_run_updated(run: Run) -> Success:
    return note(run, "on_run_updated")


@automation("on_any_run", trigger=triggers.any_run_change("echo_sync_put"))
def on_any_run(run: Run) -> Success:
    return note(run, "on_any_run")


@automation("never", trigger=triggers.any_entity_change("subject"), publish=False)
def never(run: Run) -> Success:
    return note(run, "never")


@automation("itself", trigger=triggers.any_entity_change("looped"))
def itself(run: Run) -> Success:
    """Changes the very entity whose change starts it."""
    event = run.event
    assert event is not None
    assert event.after is not None
    run.upsert_entity("looped", str(event.after["identifier"]), properties={"count": time.time()})
    return Success()


# --- Approval ------------------------------------------------------------------------------------------


@action("careful", title="Careful", operation="CREATE", required_approval="ANY")
def careful(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action(
    "very_careful",
    title="Very careful",
    operation="CREATE",
    required_approval="ALL",
    permissions={"approve": {"users": ["ann@example.com", "bob@example.com"]}},
)
def very_careful(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("on_entity", title="On an entity", blueprint="service", operation="DAY-2")
def on_entity(run: Run) -> Success:
    return Success(summary=run.entity.title)


# --- Actions that exist in Port already ----------------------------------------------------------------


@action("service_theirs", payload=payloads.LEGACY)
def service_theirs(inputs: Echo, run: Run) -> Result:
    return Success(f"{inputs.text} of {run.entity.title}")


@action("their_ui", payload=payloads.UI)
def their_ui(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)


@action("their_header", payload=payloads.RUN_ID_HEADER, mode="sync")
def their_header(inputs: Echo, run: Run) -> Result:
    return echo(inputs, run)
