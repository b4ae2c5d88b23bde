"""Names that Port accepts, and the two kinds of URL that are known only at deployment.

A definition points at a listener by `route:NAME` and at Port's own API by `port-api:/v1/…`.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final, Self
from urllib.parse import quote, unquote

_API_HOSTS: Final = frozenset({"api.getport.io", "api.port.io", "api.us.getport.io", "api.us.port.io"})
_ROUTE: Final = "route:"
_PORT_API: Final = "port-api:"
_ABSOLUTE_URL = re.compile(
    r"https?://(?P<host>[^/:?#@{}]+)(?::443)?(?P<path>(?:[/?#].*)?)$", re.IGNORECASE | re.DOTALL
)
_INPUT_NAME = re.compile(r"[A-Za-z0-9@_=\\-]+")
_SECRET_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def is_identifier(text: str) -> bool:
    """Whether Port takes the text as the identifier of an action or automation."""
    return (
        bool(text)
        and text not in {".", ".."}
        and all(c in "0123456789@_.+:=-" or unicodedata.category(c).startswith("L") for c in text)
    )


def is_input_name(text: str) -> bool:
    """Whether Port takes the text as the name of a user input."""
    return _INPUT_NAME.fullmatch(text) is not None


def is_secret_name(text: str) -> bool:
    """Whether Port takes the text as the name of an organisation secret."""
    return _SECRET_NAME.fullmatch(text) is not None


class Route(str):
    """The URL of a route of this stack's listener, resolved at deployment: `Route("deploy")` is `route:deploy`."""

    __slots__ = ()

    def __new__(cls, name: str) -> Self:
        """Raises: ValueError: the name is not an identifier."""
        if not is_identifier(name):
            raise ValueError(f"route {name!r} is not an identifier; use letters, digits and @ _ . + : = -")
        return super().__new__(cls, _ROUTE + name)

    @property
    def name(self) -> str:
        """The route's name."""
        return self.removeprefix(_ROUTE)


def route_name(url: str) -> str | None:
    """The name of the listener's route that a definition's URL stands for; None for any other URL."""
    return url.removeprefix(_ROUTE) if url.startswith(_ROUTE) else None


def route_path(name: str) -> str:
    """The path of a route below the listener's URL."""
    return f"/webhooks/{quote(name, safe='')}"


def port_api_path(url: str) -> str | None:
    """The path and query of a URL that stands for, or is, Port's own API; None for any other URL."""
    if url.startswith(_PORT_API):
        return url.removeprefix(_PORT_API)
    match = _ABSOLUTE_URL.match(url)
    return match["path"] if match and match["host"].lower() in _API_HOSTS else None


def action_run_by(url: str) -> str | None:
    """The identifier of the action that a URL of Port's API executes; None if it is another call or a template."""
    match = re.match(r"/v1/actions/([^/?{}]+)/runs(?:[?#]|$)", port_api_path(url) or "")
    return unquote(match[1]) if match else None


def resolve_urls(
    body: Mapping[str, Any], *, route: Callable[[str], Any], port_api: Callable[[str], Any]
) -> dict[str, Any]:
    """A copy of a definition's body with its symbolic URLs replaced.

    They occur in `invocationMethod.url` and, for the execution agent, once more inside the body that is sent.

    Args:
        route: from a route's name to the listener's URL for it.
        port_api: from a path with query (`/v1/…`) to a URL of Port's API.
    """

    def resolved(url: Any) -> Any:
        if isinstance(url, str) and (name := route_name(url)) is not None:
            return route(name)
        if isinstance(url, str) and url.startswith(_PORT_API):
            return port_api(url.removeprefix(_PORT_API))
        return url

    def at(value: Any, *keys: str) -> Any:
        if not isinstance(value, Mapping):
            return value
        copy = dict(value)
        key, *rest = keys
        if key in copy:
            copy[key] = at(copy[key], *rest) if rest else resolved(copy[key])
        return copy

    once = at(body, "invocationMethod", "url")
    copy: dict[str, Any] = at(
        once, "invocationMethod", "body", "payload", "action", "invocationMethod", "url"
    )
    return copy
