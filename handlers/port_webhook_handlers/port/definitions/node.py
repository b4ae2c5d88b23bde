"""What all parts of a definition have in common: Port's keys in, typed fields, the same keys out.

A typed field only ever holds a value of its declared type. Everything else a body contains (unknown keys,
nulls, values of another type) stays in `extra` under Port's own key, so that nothing is lost and lint can
report it.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, TypeAlias, TypeVar

Json: TypeAlias = Any
"""A JSON value: None, bool, int, float, str, list or dict with string keys."""

T = TypeVar("T")

_PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")


class DefinitionError(ValueError):
    """A definition that cannot be kept or sent.

    Attributes:
        path: where, in Port's own keys (`trigger.userInputs.properties.version`).
        problem: what is wrong with the value.
        remedy: what to write instead.
    """

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path: Final = path
        self.problem: Final = problem
        self.remedy: Final = remedy


class UnknownFieldError(DefinitionError, TypeError):
    """A part of a definition was constructed with a field that it does not have, or without one that it needs."""


def join(path: str, key: str | int) -> str:
    """The path of a member of the object or list at `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _PLAIN_KEY.fullmatch(key):
        return f"{path}[{key!r}]"
    return f"{path}.{key}" if path else key


def kind(value: object) -> str:
    """How messages call the type of a JSON value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
        case _:
            return f"a Python {type(value).__name__}"


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    folded = {candidate.lower().replace("_", ""): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower().replace("_", ""), folded, n=1, cutoff=0.75)
    return folded[matches[0]] if matches else None


def copy_json(value: object, path: str) -> Json:
    """A deep copy in plain JSON types.

    Raises:
        DefinitionError: a value, or a key, that JSON cannot express.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if math.isfinite(value):
                return value
            raise DefinitionError(path, f"is {value}", "write a finite number")
        case list() | tuple():
            return [copy_json(item, join(path, index)) for index, item in enumerate(value)]
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise DefinitionError(
                        path, f"has the key {key!r}, which is {kind(key)}", "write keys as strings"
                    )
            return {key: copy_json(item, join(path, key)) for key, item in value.items()}
        case _:
            raise DefinitionError(path, f"is {kind(value)}", "write a JSON value")


class Codec(Protocol):
    """Between Port's JSON and the value of one typed field."""

    def parse(self, value: Json, path: str) -> Any:
        """The typed value. Raises: DefinitionError, where JSON of another form is expected."""

    def accept(self, value: Any, path: str) -> Any:
        """The normalised form of a value given in code. Raises: DefinitionError, if of another type."""

    def dump(self, value: Any) -> Json:
        """The JSON of a typed value."""


@dataclass(frozen=True)
class Scalar:
    """A JSON value that is its own typed value."""

    expected: str
    test: Callable[[object], bool]

    def parse(self, value: Json, path: str) -> Json:
        if not self.test(value):
            raise DefinitionError(path, f"is {kind(value)}", f"write {self.expected}")
        return copy_json(value, path)

    accept = parse

    def dump(self, value: Any) -> Json:
        return copy_json(value, "")


STRING = Scalar("a string", lambda value: isinstance(value, str))
BOOLEAN = Scalar("true or false", lambda value: isinstance(value, bool))
NUMBER = Scalar("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
OBJECT = Scalar("an object", lambda value: isinstance(value, Mapping))
LIST = Scalar("a list", lambda value: isinstance(value, list | tuple))
ANY = Scalar("a JSON value", lambda value: value is not None)


@dataclass(frozen=True)
class ListOf:
    """A JSON list; a tuple in code."""

    item: Codec

    def parse(self, value: Json, path: str) -> tuple[Any, ...]:
        return self._each(value, path, self.item.parse)

    def accept(self, value: Any, path: str) -> tuple[Any, ...]:
        return self._each(value, path, self.item.accept)

    def dump(self, value: Any) -> Json:
        return [self.item.dump(item) for item in value]

    def _each(self, value: Any, path: str, convert: Callable[[Any, str], Any]) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise DefinitionError(path, f"is {kind(value)}", "write a list")
        return tuple(convert(item, join(path, index)) for index, item in enumerate(value))


@dataclass(frozen=True)
class MapOf:
    """A JSON object with keys of the author's choice; a dict in code."""

    item: Codec

    def parse(self, value: Json, path: str) -> dict[str, Any]:
        return self._each(value, path, self.item.parse)

    def accept(self, value: Any, path: str) -> dict[str, Any]:
        return self._each(value, path, self.item.accept)

    def dump(self, value: Any) -> Json:
        return {key: self.item.dump(item) for key, item in value.items()}

    def _each(self, value: Any, path: str, convert: Callable[[Any, str], Any]) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise DefinitionError(path, f"is {kind(value)}", "write an object")
        for key in value:
            STRING.parse(key, f"a key of {path}")
        return {key: convert(item, join(path, key)) for key, item in value.items()}


@dataclass(frozen=True)
class Either:
    """The first of several forms that fits."""

    forms: tuple[Codec, ...]

    def parse(self, value: Json, path: str) -> Any:
        return self._first(value, path, lambda form: form.parse(value, path))

    def accept(self, value: Any, path: str) -> Any:
        return self._first(value, path, lambda form: form.accept(value, path))

    def dump(self, value: Any) -> Json:
        return value.to_body() if isinstance(value, Node) else copy_json(value, "")

    def _first(self, value: Any, path: str, attempt: Callable[[Codec], Any]) -> Any:
        remedies = []
        for form in self.forms:
            try:
                return attempt(form)
            except DefinitionError as error:
                if error.path != path:  # the form fits, something inside it does not
                    raise
                remedies.append(error.remedy.removeprefix("write "))
        raise DefinitionError(path, f"is {kind(value)}", f"write {' or '.join(dict.fromkeys(remedies))}")


def either(*forms: Codec) -> Either:
    return Either(forms)


@dataclass(frozen=True)
class NodeOf:
    """A nested part of the model; `parse` chooses its class by what the object says."""

    base: type["Node"]
    choose: Callable[[Mapping[str, Json]], type["Node"] | None] | None = None

    def parse(self, value: Json, path: str) -> Any:
        if not isinstance(value, Mapping):
            raise DefinitionError(path, f"is {kind(value)}", f"write {self.base.MEANING}")
        chosen = self.choose(value) if self.choose else self.base
        if chosen is None:
            raise DefinitionError(path, f"is not {self.base.MEANING}", f"write {self.base.MEANING}")
        return chosen.from_body(value, path)

    def accept(self, value: Any, path: str) -> Any:
        if not isinstance(value, self.base):
            raise DefinitionError(path, f"is {kind(value)}", f"write {self.base.MEANING}")
        return value

    def dump(self, value: Any) -> Json:
        return value.to_body()


STRINGS = ListOf(STRING)
STRING_MAP = MapOf(STRING)


@dataclass(frozen=True)
class Spec:
    """What the machinery knows of one field.

    Attributes:
        name: the field in code.
        key: the key in Port's body.
        required: whether Port demands the key.
        choices: the values that Port documents; empty if free.
        closed: whether Port refuses other values.
    """

    name: str
    key: str
    codec: Codec
    required: bool
    choices: tuple[str, ...]
    closed: bool


def _meta(
    codec: Codec, *, required: bool, choices: tuple[str, ...] = (), closed: bool = True
) -> dict[str, Any]:
    return {"codec": codec, "required": required, "choices": choices, "closed": closed}


def needs(codec: Codec, **options: Any) -> dict[str, Any]:
    """Metadata of a string that Port requires. It is empty when the body has no such key."""
    return _meta(codec, required=True, **options)


def opt(codec: Codec, **options: Any) -> dict[str, Any]:
    """Metadata of an optional field. It is None when the body has no such key."""
    return _meta(codec, required=False, **options)


def _camel_case(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


class NodeType(type):
    """Turns a wrong keyword into an error that names the nearest field."""

    if not TYPE_CHECKING:  # the signature that type checkers see is the dataclass's own

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            names = {f.name for f in fields(cls) if f.init}
            for name in kwargs:
                if name not in names:
                    near = nearest(name, names)
                    remedy = f"did you mean {near}?" if near else f"it has {', '.join(sorted(names))}"
                    raise UnknownFieldError(
                        f"{cls.__name__}.{name}",
                        "is not a field",
                        f"{remedy} (a key that this version does not know goes into extra={{…}})",
                    )
            positional = [f.name for f in fields(cls) if f.init and not f.kw_only]
            if len(args) > len(positional):
                raise UnknownFieldError(cls.__name__, "has too many positional values", "name the fields")
            given = {*kwargs, *positional[: len(args)]}
            for f in fields(cls):
                if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in given:
                    raise UnknownFieldError(f"{cls.__name__}.{f.name}", "is missing", "give it a value")
            return super().__call__(*args, **kwargs)


@dataclass(frozen=True)
class Node(metaclass=NodeType):
    """A JSON object of a definition, with typed fields.

    Attributes:
        extra: members of the body that no typed field can hold, under Port's own keys.
        key_order: the keys of the body that this was parsed from; a written body keeps their order.
    """

    TYPE: ClassVar[str | None] = None
    """The value of the body's `type`, where it follows from the class."""
    STRICT: ClassVar[bool] = True
    """Whether Port documents that it refuses unknown keys here."""
    MEANING: ClassVar[str] = "an object"

    extra: Mapping[str, Json] = field(default_factory=dict, kw_only=True)
    key_order: tuple[str, ...] = field(default=(), kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = type(self).__name__
        for spec in specs(type(self)).values():
            value = getattr(self, spec.name)
            if value is not None:
                object.__setattr__(self, spec.name, spec.codec.accept(value, f"{name}.{spec.name}"))
        object.__setattr__(
            self, "extra", copy_json(OBJECT.parse(self.extra, f"{name}.extra"), f"{name}.extra")
        )
        object.__setattr__(self, "key_order", tuple(self.key_order))

    @classmethod
    def from_body(cls, body: Mapping[str, Json], path: str = "") -> Self:
        """The typed form of Port's object.

        Raises:
            DefinitionError: not an object, or a value in it that is not JSON.
        """
        if not isinstance(body, Mapping):
            raise DefinitionError(path or cls.__name__, f"is {kind(body)}", "write an object")
        known = specs(cls)
        values: dict[str, Any] = {}
        extra: dict[str, Json] = {}
        for key, value in body.items():
            spec = known.get(key)
            if key == "type" and cls.TYPE is not None and value == cls.TYPE:
                continue
            if spec is None or value is None:
                extra[key] = value
                continue
            try:
                values[spec.name] = spec.codec.parse(value, join(path, key))
            except DefinitionError:
                extra[key] = value
        for spec in known.values():
            if spec.required and spec.name not in values:
                values[spec.name] = ""
        return cls(**values, extra=copy_json(extra, path), key_order=tuple(body))

    def to_body(self) -> dict[str, Json]:
        """Port's object: new containers, equal to the parsed body if nothing was changed."""
        body: dict[str, Json] = {} if self.TYPE is None else {"type": self.TYPE}
        for spec in specs(type(self)).values():
            value = getattr(self, spec.name)
            absent = value is None or (spec.required and value == "" and spec.key not in self.key_order)
            if not absent and not (value == "" and spec.required and spec.key in self.extra):
                body[spec.key] = spec.codec.dump(value)
        for key, value in copy_json(self.extra, "").items():
            body.setdefault(key, value)
        if self.TYPE is not None and self.key_order and "type" not in self.key_order:
            del body["type"]
        ordered = {key: body.pop(key) for key in self.key_order if key in body}
        return ordered | body

    def replace(self, **changes: Any) -> Self:
        """A copy with other values for some fields."""
        return replace(self, **changes)


@functools.cache
def specs(cls: type[Node]) -> dict[str, Spec]:
    """The fields of a part of the model that stand for keys of Port's body, by key."""
    found = {}
    for f in fields(cls):
        if "codec" in f.metadata:
            key = _camel_case(f.name)
            found[key] = Spec(f.name, key, **f.metadata)
    return found
