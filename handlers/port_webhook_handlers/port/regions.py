"""Where Port's API is, by region of the organisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

API_BASE_URLS: Final[Mapping[str, str]] = {
    "eu": "https://api.getport.io",
    "us": "https://api.us.getport.io",
}
"""Base URLs without a trailing slash; the routes below begin with /v1."""

SOURCE_ADDRESSES: Final[Mapping[str, tuple[str, ...]]] = {
    "eu": ("3.251.12.205", "34.252.219.131", "54.75.236.107"),
    "us": ("44.221.30.248", "44.193.148.179", "34.197.132.205"),
}
"""Addresses that Port sends its requests from, as its documentation lists them."""
