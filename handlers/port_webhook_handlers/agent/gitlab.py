"""Triggers of GitLab pipelines: what Port's own agent makes of an invocation of the type GITLAB by default.

Such an invocation names a project instead of a URL. The agent holds the trigger token of each project, as the secret
`<group>_<project>` with `_` for every `/` of the group (Port's rule).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from port_webhook_handlers.agent.mapping import MappingError, Rule
from port_webhook_handlers.agent.messages import Message

TYPE: Final = "GITLAB"
REPORT: Final = Rule(
    "gitlab",
    {"report": {"link": ".response.json.web_url", "externalRunId": ".response.json.id | tostring"}},
)


def trigger(
    message: Message, base_url: str, token: Callable[[str], str | None]
) -> tuple[str, dict[str, Any]]:
    """The URL and the body of the request that starts the pipeline.

    Args:
        message: its invocation is of this type.
        base_url: address of GitLab.
        token: gives the secret of a name, or None.

    Raises:
        MappingError: group or project is missing, or there is no token for them.
    """
    payload = message.document.get("payload")
    payload = payload if isinstance(payload, dict) else {}
    action = payload.get("action")
    method = action.get("invocationMethod", {}) if isinstance(action, dict) else {}
    group, project = method.get("groupName"), method.get("projectName")
    if not (isinstance(group, str) and group and isinstance(project, str) and project):
        raise MappingError(
            "The invocation names no GitLab group and project; check groupName and projectName of the action."
        )
    name = f"{group.replace('/', '_')}_{project}"
    secret = token(name)
    if not secret:
        raise MappingError(
            f"The agent has no trigger token for {group}/{project}; give it the secret {name}."
        )
    inputs = payload.get("properties")
    inputs = inputs if isinstance(inputs, dict) else {}
    variables = {} if method.get("omitUserInputs") else dict(inputs)
    if isinstance(method.get("pipelineVariables"), dict):
        variables |= method["pipelineVariables"]
    body = {
        "ref": inputs.get("ref") or method.get("defaultRef") or "main",
        "token": secret,
        "variables": {key: _text(value) for key, value in variables.items()},
        "port_payload": {} if method.get("omitPayload") else message.body,
    }
    path = quote(f"{group}/{project}", safe="")
    return f"{base_url.rstrip('/')}/api/v4/projects/{path}/trigger/pipeline", body


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
