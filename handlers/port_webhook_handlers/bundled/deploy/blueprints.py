"""Blueprints that the deploy handler works with, as bodies of Port's API."""

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

BLUEPRINTS: tuple[dict[str, Any], ...] = (SERVICE, DEPLOYMENT)
"""In the order in which they can be created: a relation's target comes first."""
