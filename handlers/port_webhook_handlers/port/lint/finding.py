"""What lint says, and what it may know about the organisation."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

from port_webhook_handlers.port.definitions import Definition, Json

Severity: TypeAlias = Literal["error", "warning"]
"""An error is refused by Port or cannot do what is written; a warning is accepted but doubtful."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect of a definition.

    Attributes:
        rule: `PW101`; docs/lint-rules.md explains each.
        path: where, in Port's own keys, below the definition.
        message: what is wrong.
        remedy: what to write instead.
        definition: identifier of the action or automation; empty if it has none.
        source: where it was written (`deploy.py:31`), if known.
    """

    rule: str
    severity: Severity
    path: str
    message: str
    remedy: str
    definition: str = ""
    source: str | None = None

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.source, self.definition, self.path) if part)
        return f"{where}: {self.message}; {self.remedy} [{self.rule} {self.severity}]"


@dataclass(frozen=True, slots=True)
class BlueprintShape:
    """What a blueprint's entities have.

    Attributes:
        writable: properties that can be set.
        computed: mirror, calculation and aggregation properties.
        relations: relations.
    """

    writable: frozenset[str] = frozenset()
    computed: frozenset[str] = frozenset()
    relations: frozenset[str] = frozenset()

    @classmethod
    def from_body(cls, body: Mapping[str, Json]) -> Self:
        """The shape of a blueprint as Port's API has it."""
        computed = ("mirrorProperties", "calculationProperties", "aggregationProperties")
        return cls(
            writable=frozenset((body.get("schema") or {}).get("properties") or {}),
            computed=frozenset(name for key in computed for name in body.get(key) or {}),
            relations=frozenset(body.get("relations") or {}),
        )


@dataclass(frozen=True)
class Known:
    """What exists besides the definitions. None: not known, so nothing is said about it.

    Attributes:
        secrets: names of the organisation's secrets.
        blueprints: shapes by identifier.
        actions: identifiers of other actions and automations.
        routes: names of the routes that handlers serve.
        unmanaged: those of them whose definitions others keep, so that none is missed.
    """

    secrets: Collection[str] | None = None
    blueprints: Mapping[str, BlueprintShape] | None = None
    actions: Collection[str] | None = None
    routes: Collection[str] | None = None
    unmanaged: Collection[str] = ()

    @staticmethod
    def shapes(blueprints: Iterable[Mapping[str, Json]]) -> dict[str, BlueprintShape]:
        """Shapes by identifier, from bodies of blueprints."""
        return {body["identifier"]: BlueprintShape.from_body(body) for body in blueprints}


@dataclass(frozen=True)
class Context:
    """One definition under examination.

    Attributes:
        body: what would be sent to Port.
        identifiers: those of all definitions of the set.
    """

    definition: Definition
    body: Mapping[str, Json]
    known: Known
    identifiers: Collection[str] = field(default_factory=tuple)

    def error(self, rule: str, path: str, message: str, remedy: str) -> Finding:
        return self._finding(rule, "error", path, message, remedy)

    def warning(self, rule: str, path: str, message: str, remedy: str) -> Finding:
        return self._finding(rule, "warning", path, message, remedy)

    def _finding(self, rule: str, severity: Severity, path: str, message: str, remedy: str) -> Finding:
        return Finding(
            rule, severity, path, message, remedy, self.definition.identifier, self.definition.source
        )


def suggestion(name: str, known: Collection[str], otherwise: str) -> str:
    """`did you mean …?`, or what to do if no known name is near."""
    from port_webhook_handlers.port.definitions.node import nearest

    near = nearest(name, known)
    return f"did you mean {near}?" if near and near != name else otherwise
