"""Validation of user inputs against the schema in the manifest, before any handler code is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from port_webhook_handlers.runtime.plain_schema import Check, plain_check

Validate = Callable[[Any], Any]


class InputsValidator:
    """Checks inputs with a validator that is compiled once.

    Args:
        schema: JSON Schema, draft 7, of an object.
        encrypted: names of inputs that are still encrypted, of which only the type is known: a string.
        eager: compile now, so that a schema that is none is noticed; else when inputs are not plainly valid.

    Raises:
        ValueError: the schema is not one.
    """

    def __init__(
        self, schema: Mapping[str, Any], encrypted: tuple[str, ...] = (), *, eager: bool = True
    ) -> None:
        properties = dict(schema.get("properties", {}))
        for name in encrypted:
            if name in properties:
                properties[name] = {"type": ["string", "null"]}
        self._schema: dict[str, Any] = {**schema}
        if properties:
            self._schema["properties"] = properties
        self._validate = _compile(self._schema) if eager else None
        self._plainly_valid: Check | None = None
        self._single: dict[str, Validate] = {}

    def errors(self, inputs: Any) -> dict[str, str]:
        """Every input that is wrong, with what is wrong with it; empty if all are right.

        Values are not repeated: they may be confidential.
        """
        if self._plainly_valid is None:
            self._plainly_valid = plain_check(self._schema)
        if self._plainly_valid(inputs):
            return {}
        if self._validate is None:
            self._validate = _compile(self._schema)
        try:
            self._validate(inputs)
        except Exception as error:
            import fastjsonschema

            if not isinstance(error, fastjsonschema.JsonSchemaValueException):
                raise
            return self._all_errors(inputs) or {_place(error): _problem(error)}
        return {}

    def _all_errors(self, inputs: Any) -> dict[str, str]:
        # The compiled validator stops at the first error; the sender wants all of them.
        import fastjsonschema

        if not isinstance(inputs, dict):
            return {"": "must be an object"}
        found: dict[str, str] = {}
        properties: Mapping[str, Any] = self._schema.get("properties", {})
        for name in self._schema.get("required", ()):
            if name not in inputs:
                found[name] = "is required"
        for name, value in inputs.items():
            if name in properties:
                try:
                    self._validator_of(name)(value)
                except fastjsonschema.JsonSchemaValueException as error:
                    place = _place(error)
                    found[f"{name}.{place}" if place else name] = _problem(error)
            elif (
                self._schema.get("additionalProperties") is False and "patternProperties" not in self._schema
            ):
                found[name] = "is not an input of this action"
        return found

    def _validator_of(self, name: str) -> Validate:
        if name not in self._single:
            schema = dict(self._schema["properties"][name])
            # References are resolved from the root.
            schema.update({key: self._schema[key] for key in ("definitions", "$defs") if key in self._schema})
            self._single[name] = _compile(schema)
        return self._single[name]


def _compile(schema: dict[str, Any]) -> Validate:
    import fastjsonschema

    try:
        # Defaults are the handler's business: the stored body stays as it was signed.
        compiled: Validate = fastjsonschema.compile(schema, use_default=False)
    except (
        fastjsonschema.JsonSchemaDefinitionException,
        re.error,
        AttributeError,
        KeyError,
        TypeError,
    ) as error:
        raise ValueError(f"inputs_schema is not a JSON Schema: {error}") from error
    return compiled


def _place(error: Any) -> str:
    path: list[str] = [str(part) for part in error.path][1:]
    return ".".join(path)


def _problem(error: Any) -> str:
    message = str(error.message)
    return message.removeprefix(str(error.name)).strip() or "is not valid"
