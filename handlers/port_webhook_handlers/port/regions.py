"""Where Port's API is, by region of the organisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

API_BASE_URLS: Final[Mapping[str, str]] = {
    "eu": "https://api.getport.io",
    "us": "https://api.us.getport.io",
}
"""Base URLs without a trailing slash; the routes below begin with /v1."""
