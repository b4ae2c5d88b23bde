"""Which URLs an agent may call.

Definitions decide the URL of a delivery, and everybody who may edit actions in Port can write them. Without a list,
an agent inside a network would be a way into it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

# Metadata services of cloud providers that are outside the link-local range, which is refused as a whole.
_METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16")
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_METADATA_NAMES: Final = frozenset({"metadata", "metadata.google.internal", "instance-data"})
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")


class DestinationError(Exception):
    """A URL that is not called; the message says why and what to do."""


class AllowList:
    """Hosts that may be called.

    Args:
        entries: `host`, `host:port` or `*.domain`; the last stands for all names below the domain.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._entries = frozenset(entry.lower().rstrip(".") for entry in entries)
        self._check = lru_cache(maxsize=1024)(self._place)

    def place(self, url: str) -> str:
        """The `host:port` of a URL that may be called.

        Raises:
            DestinationError: it may not.
        """
        return self._check(url)

    def _place(self, url: str) -> str:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise DestinationError("The URL of the invocation is not one.") from None
        host = (parts.hostname or "").lower().rstrip(".")
        if (
            parts.scheme not in ("http", "https")
            or not host
            or _UNPRINTABLE.search(url)
            or "@" in parts.netloc
        ):
            raise DestinationError(
                "The URL of the invocation must be http or https, without a user and blanks."
            )
        port = port or (443 if parts.scheme == "https" else 80)
        if host in _METADATA_NAMES or not is_callable_text(host):
            raise DestinationError(f"{host} is an address that is never called.")
        domains = host.split(".")
        candidates = {host, f"{host}:{port}", *(f"*.{'.'.join(domains[n:])}" for n in range(1, len(domains)))}
        if not candidates & self._entries:
            raise DestinationError(
                f"{host}:{port} is not among the hosts that this agent may call; add it to the agent's allowed hosts."
            )
        return f"{host}:{port}"


def is_callable(address: str) -> bool:
    """Whether an IP address may be called: never link-local, metadata, multicast or unspecified ones."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64:
            found = ipaddress.ip_address(found.packed[-4:])
        else:
            found = found.ipv4_mapped or found.sixtofour or found
    return not (found.is_link_local or found.is_multicast or found.is_unspecified or found in _METADATA)


def is_callable_text(host: str) -> bool:
    """As `is_callable`, for a host that may be a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return is_callable(host)
