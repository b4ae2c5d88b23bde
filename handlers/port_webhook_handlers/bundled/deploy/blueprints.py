"""Blueprints that the deploy handler works with, under the names that they have by default."""

from __future__ import annotations

from typing import Any

from port_webhook_handlers.bundled.blueprints import DEPLOYMENT, SERVICE

__all__ = ["BLUEPRINTS", "DEPLOYMENT", "SERVICE"]

BLUEPRINTS: tuple[dict[str, Any], ...] = (SERVICE, DEPLOYMENT)
"""In the order in which they can be created: a relation's target comes first."""
