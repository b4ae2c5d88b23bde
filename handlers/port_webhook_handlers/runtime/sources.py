"""From where requests are taken. An address proves nothing: this comes before the signature, not in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

# They run no handler. Balancers ask for the one, and who deploys the stack proves the other.
_OPEN: Final = frozenset({"/health", "/webhooks/_verification"})

MOST_HOPS: Final = 10


class Sources:
    """The networks that requests may come from.

    Args:
        networks: addresses and networks, such as `3.251.12.205` or `10.0.0.0/8`.
        hops: how many proxies in front are trusted to add to X-Forwarded-For: 0: none, the sender is the socket's
            peer; n: the sender is the n-th address from the right.

    Raises:
        ValueError: a network is none, or the number of proxies is out of range.
    """

    def __init__(self, networks: Iterable[str], hops: int = 0) -> None:
        # Here, because nobody pays for it who takes requests from everywhere.
        from ipaddress import ip_network

        self._networks = [ip_network(network) for network in networks]
        if not 0 <= hops <= MOST_HOPS:
            raise ValueError(f"{hops} is no number of proxies from 0 to {MOST_HOPS}")
        self._hops = hops

    @classmethod
    def of(cls, networks: Sequence[str], hops: int = 0) -> Sources | None:
        """As the configuration says; None: from everywhere."""
        return cls(networks, hops) if networks else None

    def takes(self, path: str, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request is to be looked at.

        Args:
            path: as received, without query.
            peer: address of the other end of the connection; None: not known.
            headers: names in lower case.
        """
        if path in _OPEN:
            return True
        address = _address(peer if self._hops == 0 else self._forwarded(headers))
        # A network of the other version holds no address of this one.
        return address is not None and any(address in network for network in self._networks)

    def _forwarded(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        listed = ",".join(
            value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"
        ).split(",")
        # Further to the left stands what the sender itself may have written.
        return listed[-self._hops].strip() if len(listed) >= self._hops else None


def _address(text: str | None) -> IPv4Address | IPv6Address | None:
    from ipaddress import ip_address

    if text is None:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address
