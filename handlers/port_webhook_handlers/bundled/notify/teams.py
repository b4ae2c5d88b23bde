"""Posts a message to a channel of Microsoft Teams, through a workflow whose address is a secret of the stack."""

from __future__ import annotations

from typing import Annotated, Any

from port_webhook_handlers.bundled.notify import _chat
from port_webhook_handlers.sdk import Failure, Field, Inputs, MultiLine, Result, Run, SettingError, action

URL = "TEAMS_URL"
"""The secret that holds the address."""

_HOSTS = (".logic.azure.com", ".logic.azure.com:443", ".api.powerplatform.com", ".webhook.office.com")


class TeamsMessage(Inputs):
    """What the form asks."""

    title: Annotated[str | None, Field(title="Title", max_length=200)] = None
    message: Annotated[MultiLine, Field(title="Message", min_length=1, max_length=3000)]


@action(
    "notify_by_teams",
    title="Notify by Teams",
    description="Posts a message to the team's channel in Microsoft Teams.",
    icon="MicrosoftTeams",
    operation="CREATE",
    secrets=[URL],
    timeout_seconds=90,
    on_interrupt="retry",
)
def notify_by_teams(inputs: TeamsMessage, run: Run) -> Result:
    """Posts `inputs.message` as an Adaptive Card."""
    try:
        text = _chat.templated(run, inputs.message)
    except SettingError as error:
        return Failure(str(error))
    return _chat.post(run, URL, card(inputs.title, text), _HOSTS)


def card(title: str | None, text: str) -> dict[str, Any]:
    """A message with one Adaptive Card; a TextBlock renders links, but mentions nobody."""
    blocks: list[dict[str, Any]] = [{"type": "TextBlock", "text": text, "wrap": True}]
    if title:
        blocks.insert(
            0, {"type": "TextBlock", "text": title, "weight": "Bolder", "size": "Medium", "wrap": True}
        )
    content = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": blocks,
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": content}
    return {"type": "message", "attachments": [attachment]}
