"""What Port's objects have in common: who owns an object, and when it is written.

- An object that exists already is taken over if it means the same as ours (an interrupted deployment made it);
  otherwise only with `adopt: true`. Adopted objects outlive their resource unless `deleteAdopted` is set.
- An operation never deletes what it has written itself: a resource that got another name in the program is
  created and deleted in one go, and both mean the same object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from port_webhook_handlers.port.client import (
    PortApiError,
    PortAuthenticationError,
    PortConflictError,
    PortNotFoundError,
    PortRateLimitError,
    PortValidationError,
)
from port_webhook_stack.port.handler import (
    UNKNOWN,
    CheckResult,
    Context,
    CreateResult,
    Diff,
    Failure,
    Properties,
    ProviderError,
    ReadResult,
)
from port_webhook_stack.port.normalise import Body, changes, reconcile

ANY: Mapping[str, Any] = {"$ref": "pulumi.json#/Any"}
STRING: Mapping[str, Any] = {"type": "string"}
BOOLEAN: Mapping[str, Any] = {"type": "boolean"}
MAP: Mapping[str, Any] = {"type": "object", "additionalProperties": ANY}

ID_SEPARATOR = "|"
"""Between the parts of an id; no identifier in Port may contain it."""

OWNERSHIP: Mapping[str, Any] = {
    "adopt": {
        **BOOLEAN,
        "description": "Take over an object that exists already and differs. It is kept on destroy.",
    },
    "deleteAdopted": {**BOOLEAN, "description": "Delete the object on destroy although it was adopted."},
}


def schema_of(
    description: str, inputs: Mapping[str, Any], required: list[str], outputs: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """An entry of the package schema; outputs are the inputs and those given."""
    return {
        "description": description,
        "inputProperties": {name: dict(value) for name, value in inputs.items()},
        "requiredInputs": required,
        "properties": {name: dict(value) for name, value in {**inputs, **(outputs or {})}.items()},
        "required": required,
    }


class PortObject:
    """The common part; subclasses say what an object looks like and where it is."""

    kind: ClassVar[str]
    """Port's word for it."""

    member: ClassVar[str] = ""
    """The member of replies that holds it; by default it is called like the kind."""

    schema: ClassVar[Mapping[str, Any]]
    secrets: ClassVar[frozenset[str]] = frozenset()

    control: ClassVar[frozenset[str]] = frozenset({"adopt", "deleteAdopted"})
    """Inputs that are ours and not part of Port's body."""

    identity: ClassVar[tuple[str, ...]] = ("identifier",)
    """The inputs that make up the id."""

    replacing: ClassVar[frozenset[str]] = frozenset()
    """Properties that Port cannot change in place."""

    identifiers: ClassVar[re.Pattern[str]] = re.compile(".+")
    """Port's rule for `identifier`; its \\p{L} is written as the slightly wider \\w."""

    fetch_params: ClassVar[Mapping[str, str] | None] = None
    """Query parameters for looking at an object."""

    subset: ClassVar[bool] = False
    """Whether others fill in such objects too, so that only what we declare counts."""

    # What a subclass says.

    def canonical(self, body: Mapping[str, Any]) -> Body:
        """The canonical form of a body."""
        raise NotImplementedError

    def item(self, id: str) -> str:
        """The path of the object with `id`."""
        raise NotImplementedError

    def collection(self, inputs: Properties) -> str:
        """The path that creates one."""
        raise NotImplementedError

    def id_of(self, values: Properties) -> str:
        """The id of the object that `values` (inputs or state) describe."""
        return ID_SEPARATOR.join(str(values[name]) for name in self.identity)

    def failures(self, inputs: Properties, olds: Properties) -> list[Failure]:
        """What is wrong with `inputs`, which may hold `UNKNOWN`."""
        raise NotImplementedError

    # The protocol of `ResourceHandler`.

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        inputs = {key: value for key, value in news.items() if value is not None}
        return CheckResult(inputs, self.failures(inputs, olds))

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        found = changes(self.canonical(self.body(olds)), self.canonical(self.body(news)))
        found.update(changes(self._control(olds), self._control(news)))
        return Diff(found, [path for path in found if path in self.replacing])

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        if preview:
            return CreateResult(self._known_id(inputs), {**inputs, "adopted": UNKNOWN})
        id = self.id_of(inputs)
        with self.reporting(id):
            try:
                adopted = False
                # Repeating is safe: had the first attempt been successful, the second one is a conflict, and
                # the object is then found to be the same.
                ctx.port.request("POST", self.collection(inputs), json=self.body(inputs), repeatable=True)
            except PortConflictError as conflict:
                adopted = self.take_over(ctx, id, inputs, conflict)
        ctx.memory.add((self.kind, id))
        return CreateResult(id, {**inputs, "adopted": adopted})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        present = self.fetch(ctx, self.id_of(state) if state else id)
        if present is None:
            return None
        subset = bool(self.body(inputs)) and (self.subset or state.get("adopted") is True)
        present = self.completed(present, self.body(inputs))
        merged = reconcile(self.body(inputs), present, self.canonical, subset=subset)
        merged |= {key: value for key, value in inputs.items() if key in self.control}
        adopted = state.get("adopted") is True
        return ReadResult(self.id_of(merged), {**merged, "adopted": adopted}, merged)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        state = {**news, "adopted": olds.get("adopted", False)}
        if preview:
            return state
        with self.reporting(self.id_of(news)):
            if changes(self.canonical(self.body(olds)), self.canonical(self.body(news))):
                self.write(ctx, self.id_of(olds), olds, news)
        ctx.memory.add((self.kind, self.id_of(news)))
        return state

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        current = self.id_of(state)
        if (self.kind, current) in ctx.memory:
            ctx.log.warning(
                f"{self.kind} {current} is kept: this deployment has written it for another resource. If the "
                "resource got a new name in the program, give it the old one as an alias next time."
            )
            return
        if ctx.config.port_is_gone:
            return
        if state.get("adopted") is True and state.get("deleteAdopted") is not True:
            ctx.log.info(f"{self.kind} {current} was adopted, so it stays in Port (deleteAdopted is not set)")
            return
        with self.reporting(current):
            try:
                self.remove(ctx, current, state)
            except PortNotFoundError:
                pass

    # Steps that subclasses replace.

    def fetch(self, ctx: Context, id: str) -> Body | None:
        """The object as Port has it, None if it is gone. Members that are no part of a body are left out."""
        if ctx.config.port_is_gone:
            return None
        try:
            reply = ctx.port.request("GET", self.item(id), params=self.fetch_params)
        except PortNotFoundError:
            return None
        return self.body(reply.get(self.member or self.kind, {}))

    def completed(self, present: Body, written: Body) -> Body:
        """`present` with what Port leaves unsaid; `written` is the body as the user wrote it, {} if nobody did."""
        return present

    def write(self, ctx: Context, id: str, olds: Properties, news: Properties) -> None:
        """Change the object `id` from `olds` to `news`; make it again if somebody deleted it."""
        try:
            ctx.port.request("PUT", self.item(id), json=self.body(news))
        except PortNotFoundError:
            ctx.log.warning(f"{self.kind} {id} was deleted outside of this program, so it is created again")
            ctx.port.request("POST", self.collection(news), json=self.body(news), repeatable=True)

    def remove(self, ctx: Context, id: str, state: Properties) -> None:
        """Delete the object `id`."""
        ctx.port.request("DELETE", self.item(id))

    def take_over(self, ctx: Context, id: str, inputs: Properties, conflict: PortConflictError) -> bool:
        """Make an existing object ours; returns whether it counts as adopted."""
        present = self.fetch(ctx, id)
        if present is None:
            raise conflict
        ours = self.body(inputs)
        # Something more in it shows that it is not what an interrupted deployment has left, unless this very
        # call has made it a moment ago and only the reply was lost.
        subset = self.subset and conflict.after_retry
        theirs = reconcile(ours, self.completed(present, ours), self.canonical, subset=subset)
        differences = changes(self.canonical(theirs), self.canonical(ours))
        adopt = inputs.get("adopt") is True
        if not differences:
            ctx.log.info(f"{self.kind} {id} exists already with the same content and is taken over")
            return adopt
        if not adopt:
            shown = ", ".join([*differences][:3]) + (", …" if len(differences) > 3 else "")
            raise ProviderError(
                f"{self.kind} {id} exists already in Port and differs in {shown}. Set `adopt` to take it over, "
                "choose another identifier, or, if the resource got a new name in the program, give it the old "
                "one as an alias"
            )
        self.write_adopted(ctx, id, inputs)
        return True

    def write_adopted(self, ctx: Context, id: str, inputs: Properties) -> None:
        """Change a foreign object to `inputs`; nobody has declared anything else of it before."""
        self.write(ctx, id, inputs, inputs)

    # Helpers.

    def body(self, values: Properties) -> Body:
        """Port's body: what of `values` is neither ours nor only recorded."""
        return {
            key: value
            for key, value in values.items()
            if key in self.schema["inputProperties"] and key not in self.control
        }

    def misnamed(self, inputs: Properties) -> list[Failure]:
        """The failure of an `identifier` that Port would refuse."""
        identifier = inputs.get("identifier")
        if not isinstance(identifier, str) or not identifier or self.identifiers.fullmatch(identifier):
            return []
        return [Failure("identifier", f"{identifier!r} has characters or a length that Port does not allow")]

    def missing(self, inputs: Properties, *names: str) -> list[Failure]:
        """Failures for the required inputs that are absent or empty."""
        return [
            Failure(name, f"is required by every {self.kind}")
            for name in names
            if inputs.get(name) in (None, "")
        ]

    def _control(self, values: Properties) -> Body:
        return {key: values[key] for key in self.control if values.get(key) not in (None, False, [])}

    def _known_id(self, inputs: Properties) -> str:
        known = all(inputs.get(name) not in (None, UNKNOWN) for name in self.identity)
        return self.id_of(inputs) if known else ""

    @contextmanager
    def reporting(self, id: str) -> Iterator[None]:
        """Names the object and the field in what Port refuses."""
        try:
            yield
        except PortValidationError as error:
            where = f"{error.field}: " if error.field else ""
            trace = f" [trace {error.trace_id}]" if error.trace_id else ""
            raise ProviderError(
                f"{self.kind} {id}: {where}Port refuses it: {error.message or error.code}{trace}"
            ) from error
        except PortConflictError as error:
            raise ProviderError(
                f"{self.kind} {id}: this identifier is taken in Port; choose another one"
            ) from error
        except (PortAuthenticationError, PortRateLimitError):
            # Not about this object: the server explains them.
            raise
        except PortApiError as error:
            raise ProviderError(f"{self.kind} {id}: {error}") from error
