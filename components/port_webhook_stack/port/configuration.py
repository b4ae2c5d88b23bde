"""The provider's configuration: which Port, as whom, and where local state is.

Values come from the stack's configuration (`port-webhook:*`) or the environment. What identifies Port goes into
the provider's inputs, so that `refresh` and `destroy` find the same one; a client secret from the environment
does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from port_webhook_handlers.port.regions import API_BASE_URLS
from port_webhook_stack.port.handler import (
    UNKNOWN,
    CheckResult,
    Diff,
    Failure,
    Kind,
    Properties,
    ProviderError,
)
from port_webhook_stack.port.local_port import FOLDER

if TYPE_CHECKING:
    from port_webhook_handlers.port.client import BaseUrl, PortClient

PACKAGE = "port-webhook"
KEYS = ("clientId", "clientSecret", "region", "baseUrl", "stateDir")
LOCAL = "local"
DEFAULT_REGION = "eu"
REGIONS = (*API_BASE_URLS, LOCAL)

_VARIABLES = {
    "clientId": "PORT_CLIENT_ID",
    "clientSecret": "PORT_CLIENT_SECRET",
    "region": "PORT_REGION",
    "baseUrl": "PORT_BASE_URL",
    "stateDir": "PORT_STATE_DIR",
}

# Two host names of one service.
_SAME_SERVICE = {"https://api.port.io": API_BASE_URLS["eu"], "https://api.us.port.io": API_BASE_URLS["us"]}

Connect = Callable[["BaseUrl", str, str], "PortClient"]
"""Makes the client for a base URL, a client id and a client secret."""


@dataclass(frozen=True)
class Configuration:
    """A valid configuration; see `ProviderConfig` of `handler` for the meaning of its members."""

    region: str | None
    client_id: str
    client_secret: str = field(repr=False)
    state_dir: Path
    address: BaseUrl = field(repr=False)
    port_is_gone: bool = False

    @property
    def base_url(self) -> str:
        return self.address if isinstance(self.address, str) else self.address()


def check(
    urn: str,
    news: Mapping[str, Any],
    olds: Mapping[str, Any],
    *,
    environment: Mapping[str, str],
    project: Path,
    connect: Connect,
) -> CheckResult:
    """Complete and validate the configuration.

    Port is asked for the organisation only if nobody has recorded it for these credentials yet. With region
    local, local Port is started, because its client id tells whether it is still the same one.
    """
    failures = _malformed(news)
    if failures:
        return CheckResult(dict(news), failures)
    given = {key: value for key, value in news.items() if value is not None}
    inputs: Properties = dict(given)
    region, base_url, failures = _place(given, environment)
    if failures:
        return CheckResult(inputs, failures)
    inputs |= {key: value for key, value in (("region", region), ("baseUrl", base_url)) if value}
    stack = urn.split("::")[0].rpartition(":")[2]
    inputs.setdefault("stateDir", environment.get(_VARIABLES["stateDir"]) or f".state/{stack}")

    if region == LOCAL:
        failures = [
            Failure(key, f"does not go with region local, which has credentials of its own: {_remove(key)}")
            for key in ("clientId", "clientSecret")
            if key in given
        ]
        if not failures:
            inputs["clientId"] = _start_local(project / inputs["stateDir"]).client_id
        return CheckResult(inputs, failures)

    client_id = given.get("clientId") or environment.get(_VARIABLES["clientId"])
    client_secret = given.get("clientSecret") or environment.get(_VARIABLES["clientSecret"])
    failures = [
        Failure(key, f"is missing: {_remedy(key, secret=key == 'clientSecret')}")
        for key, value in (("clientId", client_id), ("clientSecret", client_secret))
        if not value
    ]
    if failures or not client_id or not client_secret:
        return CheckResult(inputs, failures)
    inputs["clientId"] = client_id
    same_account = olds.get("clientId") == client_id and address_of(olds) == address_of(inputs)
    if same_account and olds.get("organization"):
        inputs["organization"] = olds["organization"]
        return CheckResult(inputs)
    organization, failure = _ask_organization(
        connect(address_of(inputs), client_id, client_secret), client_id
    )
    if organization:
        inputs["organization"] = organization
    return CheckResult(inputs, [failure] if failure else [])


def diff(olds: Mapping[str, Any], news: Mapping[str, Any]) -> Diff:
    """What changes; another Port or another organisation replaces everything, other credentials nothing."""
    found: dict[str, Kind] = {}
    for key in (*KEYS, "organization"):
        old, new = olds.get(key), news.get(key)
        if old != new:
            found[key] = Kind.ADD if old is None else Kind.DELETE if new is None else Kind.UPDATE
    replaces: list[str] = []
    if address_of(olds) != address_of(news):
        replaces += [key for key in ("region", "baseUrl") if key in found]
    elif news.get("region") == LOCAL and "clientId" in found and olds.get("clientId"):
        # Local Port's credentials are made with its folder: another client id is another, empty Port.
        replaces.append("clientId")
    elif olds.get("organization") and "organization" in found and news.get("organization"):
        replaces.append("organization")
    return Diff(found, replaces)


def configure(inputs: Mapping[str, Any], *, environment: Mapping[str, str], project: Path) -> Configuration:
    """The configuration that checked `inputs` stand for; starts local Port if that is the one.

    Raises:
        ProviderError: the client secret came from the environment and is not there any more, or local Port
            does not start.
    """
    region = inputs.get("region")
    state_dir = project / str(inputs.get("stateDir") or ".state")
    if region == LOCAL:
        return _configure_local(inputs, state_dir)
    client_id = inputs.get("clientId") or environment.get(_VARIABLES["clientId"])
    client_secret = inputs.get("clientSecret") or environment.get(_VARIABLES["clientSecret"])
    for key, value in (("clientId", client_id), ("clientSecret", client_secret)):
        if not value:
            raise ProviderError(f"{PACKAGE}:{key} is missing: {_remedy(key, secret=key == 'clientSecret')}")
    return Configuration(region, str(client_id), str(client_secret), state_dir, address_of(inputs))


def address_of(inputs: Mapping[str, Any]) -> str:
    """The base URL of Port's API, the same for all names of one service; "local" for local Port."""
    if inputs.get("region") == LOCAL:
        return LOCAL
    base_url = inputs.get("baseUrl") or API_BASE_URLS.get(str(inputs.get("region")), "")
    base_url = str(base_url).rstrip("/")
    return _SAME_SERVICE.get(base_url, base_url)


def _malformed(news: Mapping[str, Any]) -> list[Failure]:
    failures = []
    for key, value in news.items():
        if key == "version":
            continue
        if key not in KEYS:
            failures.append(Failure(key, f"is no key of the provider{nearest(key, KEYS)}; {_remove(key)}"))
        elif value is UNKNOWN:
            failures.append(
                Failure(key, "is an output of a resource, but must be known before any is created")
            )
        elif value is not None and (not isinstance(value, str) or not value):
            failures.append(Failure(key, "must be a non-empty string"))
    return failures


def _place(
    given: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[str | None, str | None, list[Failure]]:
    """Region and base URL, taken together from one source: the stack's configuration, else the environment."""
    source: Mapping[str, Any] = given
    if "region" not in given and "baseUrl" not in given:
        source = {
            key: environment[_VARIABLES[key]]
            for key in ("region", "baseUrl")
            if environment.get(_VARIABLES[key])
        }
    region, base_url = source.get("region"), source.get("baseUrl")
    if region is None and base_url is None:
        region = DEFAULT_REGION
    failures = []
    if region is not None and region not in REGIONS:
        failures.append(
            Failure(
                "region",
                f"{region!r} is no region of Port{nearest(region, REGIONS)}; use {', '.join(REGIONS)}",
            )
        )
    if base_url is not None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            failures.append(Failure("baseUrl", f"is no base URL: write it like {API_BASE_URLS['eu']}"))
        elif parts.scheme == "http" and not _is_loopback(parts.hostname):
            failures.append(Failure("baseUrl", "would send credentials unencrypted: use https://"))
        elif region is not None and not failures:
            expected = address_of({"region": region})
            if address_of({"baseUrl": base_url}) != expected:
                failures.append(
                    Failure(
                        "baseUrl", f"contradicts {PACKAGE}:region, which is {region}: remove one of the two"
                    )
                )
    return region, base_url, failures


def _ask_organization(client: PortClient, client_id: str) -> tuple[str | None, Failure | None]:
    from port_webhook_handlers.port.client import PortAuthenticationError, PortError

    try:
        reply = client.request("GET", "/v1/organization")
    except PortAuthenticationError:
        return None, Failure(
            "clientId",
            f"{client.base_url} refuses the credentials of {client_id}: check {PACKAGE}:clientId, "
            f"{PACKAGE}:clientSecret and {PACKAGE}:region",
        )
    except PortError as error:
        return None, Failure(
            "baseUrl" if client.base_url not in API_BASE_URLS.values() else "region", str(error)
        )
    organization = reply.get("organization", {}).get("id")
    return (str(organization) if organization else None), None


def _start_local(state_dir: Path) -> Any:
    from port_webhook_localport import control

    try:
        return control.ensure_running(state_dir / FOLDER)
    except control.LocalPortError as error:
        raise ProviderError(f"local Port: {error}") from error


def _configure_local(inputs: Mapping[str, Any], state_dir: Path) -> Configuration:
    from port_webhook_localport import control

    endpoint = _start_local(state_dir)

    def address() -> str:
        present = control.status(state_dir / FOLDER)
        return present.url if present else str(endpoint.url)

    recorded = inputs.get("clientId")
    return Configuration(
        LOCAL,
        endpoint.client_id,
        endpoint.client_secret,
        state_dir,
        address,
        port_is_gone=recorded is not None and recorded != endpoint.client_id,
    )


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _remedy(key: str, *, secret: bool) -> str:
    flag = "--secret " if secret else ""
    return f"run `pulumi config set {flag}{PACKAGE}:{key}`, or set {_VARIABLES[key]}"


def _remove(key: str) -> str:
    return f"run `pulumi config rm {PACKAGE}:{key}`"


def nearest(name: str, names: tuple[str, ...]) -> str:
    """A suggestion for a misspelt name, or ""."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
