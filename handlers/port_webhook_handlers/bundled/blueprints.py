"""The blueprints that bundled handlers work with, as bodies of Port's API."""

from __future__ import annotations

from typing import Any

SERVICE: dict[str, Any] = {
    "identifier": "service",
    "title": "Service",
    "icon": "Service",
    "description": "A service that can be deployed",
    "schema": {
        "properties": {
            "language": {"type": "string", "title": "Language", "description": "Main programming language"},
            "url": {"type": "string", "format": "url", "title": "URL", "description": "Where it answers"},
            "passed": {
                "type": "string",
                "title": "Checks",
                "description": "Whether its last checks passed",
                "enum": ["Passed", "Not passed"],
                "enumColors": {"Passed": "green", "Not passed": "red"},
            },
        },
        "required": [],
    },
    "relations": {},
}

ENVIRONMENT: dict[str, Any] = {
    "identifier": "environment",
    "title": "Environment",
    "icon": "Environment",
    "description": "Where deployments and resources are",
    "schema": {
        "properties": {
            "stack": {"type": "string", "title": "Stack", "description": "Stack that runs its actions"},
            "target": {"type": "string", "title": "Target", "description": "Where that stack runs"},
        },
        "required": [],
    },
    "relations": {},
}

DEPLOYMENT: dict[str, Any] = {
    "identifier": "deployment",
    "title": "Deployment",
    "icon": "Deployment",
    "description": "One version of a service that was put live",
    "schema": {
        "properties": {
            "version": {"type": "string", "title": "Version"},
            "status": {
                "type": "string",
                "title": "Status",
                "enum": ["Running", "Replaced"],
                "enumColors": {"Running": "green", "Replaced": "lightGray"},
            },
            "url": {"type": "string", "format": "url", "title": "URL"},
            "deployedAt": {"type": "string", "format": "date-time", "title": "Deployed at"},
            "run": {"type": "string", "title": "Run", "description": "Run of the action that deployed it"},
        },
        "required": ["version", "status"],
    },
    "relations": {
        "service": {"target": "service", "title": "Service", "required": True, "many": False},
    },
}

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
