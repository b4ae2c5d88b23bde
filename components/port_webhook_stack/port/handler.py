"""The protocol between the provider's server and its resource types.

A handler works on plain Python values and is synchronous: the server decodes the engine's messages, runs the
handler in a thread and encodes the result. Rules that hold for every handler:

- **Values** are `None`, `bool`, `int`, `float`, `str`, `list` and `dict`; integers arrive as `int`. The order
  of a map's keys is lost in transit.
- **Unknown** values (results of resources that do not exist yet) are the sentinel `UNKNOWN`, anywhere inside
  `news`. They occur in `check`, in `diff`, and in `create` and `update` with `preview=True`.
- **Secrets** arrive and are returned plain. The server marks them again: every path that the engine marked
  secret in the request, and every top-level property that the handler names in `secrets`. Never put one into
  a message.
- **Errors** that a user should read are `ProviderError`; the client's `PortError` is as good. Any other
  exception is reported as an internal error, with its traceback at debug level.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from port_webhook_handlers.port.client import PortClient

Properties = dict[str, Any]
"""Inputs or state of a resource, by property name."""


class _Unknown(Enum):
    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown.UNKNOWN
"""Stands for a value that is known only once another resource exists."""


def has_unknown(value: object) -> bool:
    """Whether `value` is `UNKNOWN` or holds it at any depth."""
    if isinstance(value, Mapping):
        return any(has_unknown(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(has_unknown(item) for item in value)
    return value is UNKNOWN


class Kind(Enum):
    """How a property changes."""

    ADD = "add"
    DELETE = "delete"
    UPDATE = "update"


@dataclass(frozen=True)
class Failure:
    """An input that `check` refuses.

    `property` is its path, for example `trigger.userInputs.properties.version.pattern`, or "" for the whole
    resource; `reason` says what is wrong and what to do, and holds no secret.
    """

    property: str
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """What the engine records as inputs (defaults filled in), and the refused ones."""

    inputs: Properties
    failures: Sequence[Failure] = ()


@dataclass(frozen=True)
class Diff:
    """Changes by property path; none at all means that nothing is to be done.

    `replaces` names the paths whose change needs a new object; they must occur in `changes` as well.
    """

    changes: Mapping[str, Kind] = field(default_factory=dict)
    replaces: Sequence[str] = ()
    delete_before_replace: bool = False


@dataclass(frozen=True)
class CreateResult:
    """The id under which the engine keeps the resource, and its state. At preview the id may be ""."""

    id: str
    outputs: Properties


@dataclass(frozen=True)
class ReadResult:
    """The present state of an existing object, and the inputs that would describe it."""

    id: str
    outputs: Properties
    inputs: Properties


class ProviderError(Exception):
    """A failure that the user can do something about: one message, naming what is wrong and the remedy."""


class PartialFailure(ProviderError):  # noqa: N818 - an object exists: not an error alone
    """The object exists, but not as asked for. The engine records it, and the next `up` updates it.

    Raised by `create` and `update`. `outputs` is the state as far as it is known.
    """

    def __init__(
        self, id: str, outputs: Properties, reasons: Sequence[str], inputs: Properties | None = None
    ) -> None:
        super().__init__("; ".join(reasons))
        self.id = id
        self.outputs = outputs
        self.reasons = list(reasons)
        self.inputs = inputs


class Log(Protocol):
    """Lines in the engine's output, attached to the resource at hand."""

    def debug(self, message: str) -> None: ...
    def info(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...


class ProviderConfig(Protocol):
    """The provider's configuration, complete and valid."""

    @property
    def region(self) -> str | None:
        """`eu`, `us` or `local`; None with an own base URL."""

    @property
    def base_url(self) -> str:
        """Where Port's API is now. Local Port can move, so ask for it at each use."""

    @property
    def client_id(self) -> str: ...

    @property
    def client_secret(self) -> str: ...

    @property
    def state_dir(self) -> Path:
        """The stack's folder for local state, absolute."""

    @property
    def port_is_gone(self) -> bool:
        """Whether the local Port that this configuration was made for was removed, with all that was in it."""


@dataclass
class Context:
    """What a handler may use besides its arguments.

    `memory` lives as long as the plugin's process, that is one operation of the engine: handlers note there
    which objects this operation has written, as (kind, identifier). `cancelled` is set on Ctrl-C: every wait
    must end then.
    """

    config: ProviderConfig
    port: PortClient
    log: Log
    urn: str = ""
    memory: set[tuple[str, str]] = field(default_factory=set)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def state_dir(self) -> Path:
        """The stack's folder for local state, absolute."""
        return self.config.state_dir


class ResourceHandler(Protocol):
    """One resource type. Instances hold no state; calls run in several threads at once."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """The type's entry in the package schema: `description`, `inputProperties`, `requiredInputs`,
        `properties`, `required`. Inputs that it does not list are refused before `check` is called."""

    @property
    def secrets(self) -> frozenset[str]:
        """Top-level properties that are secret in inputs and in state, whoever wrote them."""

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        """Validate `news`; `olds` are the last inputs, {} before the first deployment."""

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        """Compare the recorded state `olds` with the checked inputs `news`. No writes."""

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        """Create the object. With `preview` nothing is written; outputs may hold `UNKNOWN`."""

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        """Look at the object: a refresh, or an import (`state` and `inputs` are {}). None: it is gone."""

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        """Bring the object from state `olds` to inputs `news`; returns the new state."""

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        """Remove the object. That it is gone already is a success."""
