"""User inputs of a run: validated, encrypted where the form says so, entities expanded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from port_webhook_localport import encryption, entities, schemas
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import first_problem_by_text
from port_webhook_localport.web import ApiError, compact, not_found

_RULES = (
    "type", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "minItems", "maxItems", "uniqueItems",
)  # fmt: skip
_CHECKED_FORMATS = ("date-time", "url", "email", "ipv4", "ipv6")


@dataclass(frozen=True, slots=True)
class UserInputs:
    """Inputs that are safe to store: a secret one is ciphertext.

    Attributes:
        raw: as the caller passed them.
        expanded: what templates see: an entity input is the entity's object.
        encrypted: names of the secret inputs that are present.
    """

    raw: dict[str, Any]
    expanded: dict[str, Any]
    encrypted: list[str]


def check_definition(user_inputs: dict[str, Any]) -> None:
    """Refuses a form that cannot work.

    Raises:
        ApiError: 422 user_inputs_schema_invalid.
    """
    properties = user_inputs["properties"]
    required = user_inputs.get("required", [])
    known = set(properties) | set(user_inputs.get("titles", {}))
    orders = [("order", user_inputs.get("order", []))]
    orders += [(f"steps.{i}.order", step["order"]) for i, step in enumerate(user_inputs.get("steps", []))]
    for name in required if isinstance(required, list) else ():
        if name not in properties:
            raise _invalid(f"required: {name} is not an input")
    for where, names in orders:
        for name in names:
            if name not in known:
                raise _invalid(f"{where}: {name} is not an input or a title")
    problem = schemas.defect(_form_schema(user_inputs))
    if problem is not None:
        raise _invalid(problem)
    for name, rule in properties.items():
        _check_encryption(name, rule)


def accept(port: Port, user_inputs: dict[str, Any], given: dict[str, Any]) -> UserInputs:
    """Validates inputs and makes them safe to store. Rules that are JQ belong to the form and are skipped.

    Raises:
        ApiError: 422 user_inputs_schema_invalid naming the input, 404 an entity does not exist.
    """
    properties = user_inputs["properties"]
    schema = _form_schema(user_inputs)
    present = {name: value for name, value in given.items() if value is not None}
    if not set(given) <= set(properties):
        raise _invalid(f"{sorted(set(given) - set(properties))[0]} is not an input of this action")
    problem = first_problem_by_text(compact(schema), present)
    if problem is not None:
        raise _invalid(": ".join(part for part in problem if part))
    raw, encrypted = dict(given), []
    for name, rule in properties.items():
        if "encryption" in rule and given.get(name) is not None:
            raw[name] = _encrypt(port, rule["encryption"], given[name])
            encrypted.append(name)
    expanded = {
        name: value if name in encrypted else _expand(port, properties[name], value)
        for name, value in raw.items()
    }
    return UserInputs(raw, expanded, encrypted)


def _form_schema(user_inputs: dict[str, Any]) -> dict[str, Any]:
    required = user_inputs.get("required", [])
    return {
        "type": "object",
        "properties": {name: _schema(rule) for name, rule in user_inputs["properties"].items()},
        "required": required if isinstance(required, list) else [],
        "additionalProperties": False,
    }


def _schema(rule: dict[str, Any]) -> dict[str, Any]:
    schema = {key: rule[key] for key in _RULES if key in rule and not _is_jq(rule[key])}
    if rule.get("format") in _CHECKED_FORMATS:
        schema["format"] = rule["format"]
    if rule.get("format") == "labeled-url":
        schema["type"] = ["string", "object"]
    if isinstance(rule.get("items"), dict):
        schema["items"] = _schema(rule["items"])
    return schema


def _is_jq(value: Any) -> bool:
    return isinstance(value, dict) and "jqQuery" in value


def _encrypt(port: Port, how: Any, value: Any) -> str:
    plaintext = value if isinstance(value, str) else compact(value)
    if how == "aes256-gcm":
        return encryption.encrypt_input(plaintext, port.credentials.signing_secret)
    return encryption.encrypt_client_side(plaintext, how["key"])


def _check_encryption(name: str, rule: dict[str, Any]) -> None:
    how = rule.get("encryption")
    if how is None:
        return
    if rule["type"] not in ("string", "object"):
        raise _invalid(f"properties.{name}.encryption: is for inputs of type string and object")
    if isinstance(how, dict):
        try:
            encryption.load_public_key(how["key"])
        except ValueError as error:
            raise _invalid(f"properties.{name}.encryption.key: {error}") from None


def _expand(port: Port, rule: dict[str, Any], value: Any) -> Any:
    """Entity inputs arrive in templates as objects; callers pass identifiers."""
    if rule.get("format") == "entity" and isinstance(value, str) and value:
        return _entity(port, rule.get("blueprint"), value)
    items = rule.get("items")
    if isinstance(items, dict) and items.get("format") == "entity" and isinstance(value, list):
        return [_entity(port, items.get("blueprint") or rule.get("blueprint"), item) for item in value]
    return value


def _entity(port: Port, blueprint: str | None, identifier: str) -> Any:
    if blueprint is None:
        return {"identifier": identifier, "title": identifier}
    entity = entities.find(port, blueprint, identifier)
    if entity is None:
        raise not_found("Entity", identifier)
    return entity


def _invalid(message: str) -> ApiError:
    return ApiError(422, "user_inputs_schema_invalid", message)
