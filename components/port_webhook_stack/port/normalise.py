"""When two definitions mean the same to Port.

`canonical` gives a body without what Port adds and without explicit defaults; two bodies are equal when their
canonical forms are. `changes` lists the differences by property path, `reconcile` takes over what was changed
in Port and keeps everything else as the user wrote it.

The rules are Port's: actions saved from its UI carry explicit defaults, replies carry server members, and lists
such as `required` are sets. The order of `order`, `enum`, `expressions` and `steps` has a meaning and is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from port_webhook_stack.port.handler import UNKNOWN, Kind
from port_webhook_stack.port.wire import Path, path_text

Body = dict[str, Any]

SERVER_MEMBERS = frozenset({"id", "_id", "orgId", "createdAt", "createdBy", "updatedAt", "updatedBy"})
"""Members of Port's replies that it does not take back."""


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values; unlike Python's, True is not 1. An unknown value equals nothing."""
    if left is UNKNOWN or right is UNKNOWN:
        return False
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Kind]:
    """Differences between two canonical bodies, by the deepest path that names them."""
    found: dict[str, Kind] = {}
    _compare(old, new, (), found)
    return found


def _compare(old: Any, new: Any, path: Path, found: dict[str, Kind]) -> None:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in new:
                found[path_text((*path, key))] = Kind.DELETE
            elif key not in old:
                found[path_text((*path, key))] = Kind.ADD
            else:
                _compare(old[key], new[key], (*path, key), found)
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            step = (*path, index)
            if index >= len(new):
                found[path_text(step)] = Kind.DELETE
            elif index >= len(old):
                found[path_text(step)] = Kind.ADD
            else:
                _compare(old[index], new[index], step, found)
    elif not same(old, new):
        found[path_text(path)] = Kind.UPDATE


def reconcile(written: Any, present: Any, canonical: Callable[[Body], Body], *, subset: bool = False) -> Body:
    """`present`, in the words of `written` wherever both mean the same.

    Args:
        written: the body as the user wrote it; {} if nobody did.
        present: the body as Port returns it.
        canonical: the canonical form of a whole body.
        subset: keep only keys that `written` has, at every level: for objects that others fill in too.
    """
    before, after = canonical(written), canonical(present)
    if subset:
        after = _project(before, after)
    merged: Body = _plain(_merge(written, before, after))
    return merged


def _project(shape: Any, value: Any) -> Any:
    if isinstance(shape, Mapping) and isinstance(value, Mapping):
        return {key: _project(shape[key], value[key]) for key in shape if key in value}
    return value


def _merge(written: Any, before: Any, after: Any) -> Any:
    """`after`, but `written` where `before`, its canonical form, says the same."""
    if same(before, after):
        return written
    if isinstance(before, Mapping) and isinstance(after, Mapping) and isinstance(written, Mapping):
        merged: Body = {}
        for key, value in written.items():
            if key in after:
                merged[key] = _merge(value, before[key], after[key]) if key in before else after[key]
            elif key not in before:
                # An explicit default, which the canonical form leaves out on both sides.
                merged[key] = value
        merged.update({key: value for key, value in after.items() if key not in written})
        return merged
    return after


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def canonical_action(body: Mapping[str, Any]) -> Body:
    """The canonical form of an action or automation."""
    result = _without(
        _known(body), requiredApproval=False, allowAnyoneToViewRuns=True, description="", icon=""
    )
    trigger = result.get("trigger")
    if isinstance(trigger, Mapping):
        result["trigger"] = _trigger(trigger)
        if trigger.get("type") == "self-service" and result.get("publish") is True:
            del result["publish"]
    invocation = result.get("invocationMethod")
    if isinstance(invocation, Mapping):
        result["invocationMethod"] = _invocation(invocation)
    return result


def with_order(body: Mapping[str, Any]) -> Body:
    """An action's `body` with the order of its form's inputs made explicit.

    Without `order` and `steps` Port shows inputs in the order in which they are written, which the engine does
    not keep.
    """
    trigger = body.get("trigger")
    form = trigger.get("userInputs") if isinstance(trigger, Mapping) else None
    properties = form.get("properties") if isinstance(form, Mapping) else None
    if not (isinstance(trigger, Mapping) and isinstance(form, Mapping) and isinstance(properties, Mapping)):
        return dict(body)
    if not properties or any(form.get(key) not in (None, []) for key in ("order", "steps")):
        return dict(body)
    names = [*properties, *(name for name in form.get("titles") or {} if name not in properties)]
    return {**body, "trigger": {**trigger, "userInputs": {**form, "order": names}}}


def canonical_blueprint(body: Mapping[str, Any]) -> Body:
    """The canonical form of a blueprint."""
    result = _without(
        _known(body),
        relations={},
        mirrorProperties={},
        calculationProperties={},
        aggregationProperties={},
        description="",
        icon="",
    )
    schema = result.get("schema")
    if isinstance(schema, Mapping):
        result["schema"] = _sets(_without(_known(schema), required=[]), "required")
        properties = result["schema"].get("properties")
        if isinstance(properties, Mapping):
            result["schema"]["properties"] = {
                key: _known(value) if isinstance(value, Mapping) else value
                for key, value in properties.items()
            }
    relations = result.get("relations")
    if isinstance(relations, Mapping):
        result["relations"] = {
            key: _without(_known(value), many=False, required=False) if isinstance(value, Mapping) else value
            for key, value in relations.items()
        }
    return result


def canonical_entity(body: Mapping[str, Any]) -> Body:
    """The canonical form of an entity. `team` is a name or a set of names; the title is by default the identifier."""
    result = _known(body)
    for part in ("properties", "relations"):
        if isinstance(result.get(part), Mapping):
            # Port shows a property that has no value as null.
            result[part] = {key: value for key, value in result[part].items() if value is not None}
    if isinstance(result.get("team"), str):
        result["team"] = [result["team"]]
    result = _without(result, team=[], properties={}, relations={}, icon="", title=result.get("identifier"))
    return _sets(result, "team")


def canonical_permissions(body: Mapping[str, Any]) -> Body:
    """The canonical form of an action's permissions: users, roles and teams are sets."""
    result: Body = {}
    for part, value in _known(body).items():
        if isinstance(value, Mapping):
            value = _without(_known(value), users=[], roles=[], teams=[], ownedByTeam=False)
            value = _sets(value, "users", "roles", "teams")
        result[part] = value
    return _without(result, execute={}, approve={})


def _trigger(trigger: Mapping[str, Any]) -> Body:
    result = _known(trigger)
    condition = result.get("condition")
    if isinstance(condition, Mapping):
        if condition.get("expressions") == [] or condition.get("rules") == []:
            del result["condition"]
        else:
            result["condition"] = _without(_known(condition), combinator="and")
    form = result.get("userInputs")
    if isinstance(form, Mapping):
        inputs = _sets(_without(_known(form), required=[], order=[], titles={}, steps=[]), "required")
        properties = inputs.get("properties")
        if isinstance(properties, Mapping):
            inputs["properties"] = {
                key: _sets(_without(_known(value), dependsOn=[], visible=True, disabled=False), "dependsOn")
                if isinstance(value, Mapping)
                else value
                for key, value in properties.items()
            }
        result["userInputs"] = inputs
    return result


_INVOCATION_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "WEBHOOK": {"agent": False, "synchronized": False, "method": "POST", "headers": {}, "body": {}},
    "GITHUB": {"reportWorkflowStatus": True, "workflowInputs": {}},
    "GITLAB": {"pipelineVariables": {}},
}


def _invocation(invocation: Mapping[str, Any]) -> Body:
    result = _known(invocation)
    return _without(result, **_INVOCATION_DEFAULTS.get(str(result.get("type")), {}))


def _known(body: Mapping[str, Any]) -> Body:
    """Without server members and nulls."""
    return {key: value for key, value in body.items() if key not in SERVER_MEMBERS and value is not None}


def _without(body: Body, /, **defaults: Any) -> Body:
    return {key: value for key, value in body.items() if not (key in defaults and same(value, defaults[key]))}


def _sets(body: Body, *names: str) -> Body:
    """`body` with the lists under `names` as sorted tuples: sets to Port, compared as a whole."""
    for name in names:
        value = body.get(name)
        if isinstance(value, list):
            body[name] = tuple(sorted(value, key=lambda item: json.dumps(item, default=str, sort_keys=True)))
    return body
