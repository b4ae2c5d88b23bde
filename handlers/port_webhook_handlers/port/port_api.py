"""Invocations of Port's own API, which Port authenticates itself."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from port_webhook_handlers.port.definitions import Json, Webhook
from port_webhook_handlers.port.templates import Expression, parse_template


def request(
    path: str, *, method: str = "POST", body: Mapping[str, Json] | Sequence[Json] | None = None
) -> Webhook:
    """A call of Port's API in the region that the stack deploys to.

    It is synchronized: only then does Port end the run by the answer.

    Args:
        path: path and query, `/v1/…`.
        body: the body of that API call.

    Raises:
        ValueError: the path does not begin with `/v1/`.
    """
    if not path.startswith("/v1/"):
        raise ValueError(f"the path {path!r} is not one of Port's API; begin it with /v1/")
    return Webhook(f"port-api:{path}", synchronized=True, method=method, body=body)


def run_action(
    identifier: str,
    *,
    properties: Mapping[str, Json] | None = None,
    entity: str | None = None,
    run_as: str | None = None,
) -> Webhook:
    """Execute a self-service action.

    Args:
        identifier: the action.
        properties: its user inputs; templates are evaluated.
        entity: identifier of the entity it runs on, for DAY-2 and DELETE.
        run_as: e-mail of the user who acts; the organisation's credentials if None.
    """
    query = "" if run_as is None else f"?run_as={_quote(run_as)}"
    body: dict[str, Json] = {"properties": dict(properties or {})}
    if entity is not None:
        body["entity"] = entity
    return request(f"/v1/actions/{_quote(identifier)}/runs{query}", body=body)


def _quote(text: str) -> str:
    """Percent-encoded, except for the expressions of a template."""
    return "".join(
        f"{{{{ {part.jq} }}}}" if isinstance(part, Expression) else quote(part, safe="@:")
        for part in parse_template(text).parts
    )
