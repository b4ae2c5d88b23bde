"""The blueprint that the resource handlers work with, as a body of Port's API."""

from __future__ import annotations

from typing import Any

RESOURCE: dict[str, Any] = {
    "identifier": "resource",
    "title": "Resource",
    "icon": "Cloud",
    "description": "Something in a cloud that was created by an action",
    "schema": {
        "properties": {
            "kind": {"type": "string", "title": "Kind"},
            "status": {
                "type": "string",
                "title": "Status",
                "enum": ["Creating", "Ready", "Failed", "Deleting"],
                "enumColors": {
                    "Creating": "blue",
                    "Ready": "green",
                    "Failed": "red",
                    "Deleting": "lightGray",
                },
            },
            "parameters": {"type": "object", "title": "Parameters"},
            "outputs": {"type": "object", "title": "Outputs"},
            "owner": {"type": "string", "format": "user", "title": "Owner"},
            "expiresAt": {"type": "string", "format": "timer", "title": "Expires at"},
            "run": {"type": "string", "title": "Run", "description": "Run of the action that created it"},
        },
        "required": ["kind", "status"],
    },
    "relations": {},
}

BLUEPRINTS: tuple[dict[str, Any], ...] = (RESOURCE,)
