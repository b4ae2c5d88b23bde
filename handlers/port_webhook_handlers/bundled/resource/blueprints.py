"""The blueprint that the resource handlers work with, under the names that it has by default."""

from __future__ import annotations

from typing import Any

from port_webhook_handlers.bundled.blueprints import RESOURCE

__all__ = ["BLUEPRINTS", "RESOURCE"]

BLUEPRINTS: tuple[dict[str, Any], ...] = (RESOURCE,)
