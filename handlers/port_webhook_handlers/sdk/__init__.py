"""What the author of a handler imports.

from port_webhook_handlers.sdk import Field, Inputs, Run, Success, action

class Greet(Inputs):
    name: Annotated[str, Field(title="Name", max_length=40)]

@action("greet", title="Greet somebody")
def greet(inputs: Greet, run: Run) -> Success:
    run.log(f"greeting {inputs.name}")
    return Success(summary=f"Hello {inputs.name}")
"""

from port_webhook_handlers.port.payload import Payload
from port_webhook_handlers.sdk import payloads, triggers
from port_webhook_handlers.sdk.decorators import action, automation
from port_webhook_handlers.sdk.errors import (
    HandlerDefinitionError,
    InputError,
    RetryableError,
    SdkError,
    SettingError,
    UndeclaredSecretError,
)
from port_webhook_handlers.sdk.fields import (
    JQ,
    Blueprint,
    ClientSideKey,
    Email,
    Field,
    Ipv4,
    Ipv6,
    Markdown,
    MultiLine,
    Proto,
    Step,
    Team,
    Title,
    Url,
    User,
    Yaml,
    jq,
)
from port_webhook_handlers.sdk.inputs import Inputs
from port_webhook_handlers.sdk.results import Failure, HandedOver, Result, Success
from port_webhook_handlers.sdk.run import Event, Run, Trigger
from port_webhook_handlers.sdk.triggers import EventTrigger
from port_webhook_handlers.sdk.values import Entity, LabeledUrl

__all__ = [
    "JQ",
    "Blueprint",
    "ClientSideKey",
    "Email",
    "Entity",
    "Event",
    "EventTrigger",
    "Failure",
    "Field",
    "HandedOver",
    "HandlerDefinitionError",
    "InputError",
    "Inputs",
    "Ipv4",
    "Ipv6",
    "LabeledUrl",
    "Markdown",
    "MultiLine",
    "Payload",
    "Proto",
    "Result",
    "RetryableError",
    "Run",
    "SdkError",
    "SettingError",
    "Step",
    "Success",
    "Team",
    "Title",
    "Trigger",
    "UndeclaredSecretError",
    "Url",
    "User",
    "Yaml",
    "action",
    "automation",
    "jq",
    "payloads",
    "triggers",
]
