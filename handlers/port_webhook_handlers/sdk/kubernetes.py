"""What a handler may do in a cluster: checked where it is declared, a Role where it is deployed.

    kubernetes_permissions=[
        {"namespace": "shop", "group": "apps", "resources": ["deployments"], "names": ["cart"], "verbs": ["get", "patch"]},
    ]

In place of the list there may be a function that makes it of the handler's settings. Wildcards are refused, and every
rule names the objects that it is about: so `create` and `list`, which Kubernetes cannot bind to names, are not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

VERBS: Final = ("get", "watch", "patch", "update", "delete")

_KEYS: Final = ("namespace", "group", "resources", "names", "verbs")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_RESOURCE: Final = re.compile(r"[a-z]+(/[a-z]+)?")


def problem_with(permissions: object) -> str | None:
    """What is wrong with declared permissions; None if nothing is."""
    if isinstance(permissions, str | bytes) or not isinstance(permissions, Sequence):
        return "kubernetes_permissions must be a list of maps"
    for index, rule in enumerate(permissions):
        where = f"kubernetes_permissions[{index}]"
        if not isinstance(rule, Mapping) or set(rule) != set(_KEYS):
            return f"{where} must have the keys {', '.join(_KEYS)}"
        if not isinstance(rule["namespace"], str) or not _NAME.fullmatch(rule["namespace"]):
            return f"{where}.namespace: {rule['namespace']!r} is no namespace"
        if not isinstance(rule["group"], str) or "*" in rule["group"]:
            return f'{where}.group: {rule["group"]!r} is no API group; "" is that of Pods and Secrets'
        for key, pattern in (("resources", _RESOURCE), ("names", _NAME)):
            values = rule[key]
            if not isinstance(values, list | tuple) or not values:
                return f"{where}.{key} must be a list of strings, at least one"
            for value in values:
                if not isinstance(value, str) or not pattern.fullmatch(value):
                    return f"{where}.{key}: {value!r} is no name of Kubernetes; wildcards are not allowed"
        if not isinstance(rule["verbs"], list | tuple) or not rule["verbs"]:
            return f"{where}.verbs must be a list of strings, at least one"
        for verb in rule["verbs"]:
            if verb not in VERBS:
                return f"{where}.verbs: {verb!r} cannot be bound to names; use {', '.join(VERBS)}"
    return None


def rules(permissions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checked permissions as plain JSON values."""
    return [
        {key: list(item[key]) if isinstance(item[key], list | tuple) else item[key] for key in _KEYS}
        for item in permissions
    ]
