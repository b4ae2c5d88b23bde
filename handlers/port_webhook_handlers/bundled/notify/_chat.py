"""What the handlers of Slack and Teams share: one post to an address that is a secret."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.bundled import outbound
from port_webhook_handlers.bundled.options import fill
from port_webhook_handlers.sdk import Failure, Result, Run, SettingError, Success

# Kept back from the handler's time, so that it can still report.
_RESERVE_SECONDS = 10
_TRY_SECONDS = 15
_TRIES = 3


def values(run: Run, message: str) -> dict[str, Any]:
    """What a template may name: `{message}`, `{action}`, `{run}`, `{by}`."""
    return {
        "message": message,
        "action": run.action,
        "run": run.id,
        "by": run.trigger.email or "an automation",
    }


def templated(run: Run, message: str, key: str = "template", default: str = "{message}") -> str:
    """The text to send, by the template in the settings.

    Raises:
        SettingError: the template cannot be used.
    """
    template = run.settings.get(key, default)
    if not isinstance(template, str) or not template:
        raise SettingError(f"{key}: must be a text, such as '{{message}} ({{by}})'")
    return fill(template, values(run, message), key)


def post(run: Run, secret: str, payload: Mapping[str, Any], hosts: tuple[str, ...]) -> Result:
    """Posts JSON to the address in a secret.

    The address is a credential by itself, so nothing of it is reported but its host.

    Args:
        run: gives secret and settings; `hosts` there replaces the hosts that are allowed, and `private` allows
            private addresses and plain HTTP, for a relay of one's own.
        secret: name of the secret.
        payload: what to post.
        hosts: allowed by default; one that starts with a dot stands for all below it.
    """
    try:
        allowed, private = _reach(run, hosts)
        try:
            target = outbound.parse(run.secret(secret).strip())
        except ValueError as error:
            raise SettingError(f"secret {secret} {error}") from None
        if not any(_matches(target.origin, host) for host in allowed):
            raise SettingError(
                f"secret {secret} leads to {target.origin}, which is not allowed ({', '.join(allowed)}); "
                "correct it, or list the host under hosts in the settings of this handler"
            )
        if target.scheme == "http" and not private:
            raise SettingError(f"secret {secret} must be an https address")
        answer = outbound.send_persistently(
            lambda seconds: outbound.send(
                "POST",
                target,
                headers={"Content-Type": "application/json"},
                body=json.dumps(payload).encode(),
                private=private,
                seconds=seconds,
            ),
            # A message twice is better than none.
            repeatable=True,
            attempts=_TRIES,
            seconds=max(1.0, run.seconds_left - _RESERVE_SECONDS),
            each_seconds=_TRY_SECONDS,
            report=run.log,
        )
    except (SettingError, outbound.OutboundError) as error:
        return Failure(f"The message was not sent: {error}.")
    if not 200 <= answer.status < 300:
        said = answer.text.strip()[:200]
        return Failure(f"{target.origin} answered {answer.status}{f': {said}' if said else ''}.")
    return Success(f"The message was sent to {target.origin}.")


def _reach(run: Run, hosts: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    given, private = run.settings.get("hosts"), run.settings.get("private", False)
    if not isinstance(private, bool):
        raise SettingError("private: must be true or false")
    if given is None:
        return hosts, private
    if not isinstance(given, list) or not given or not all(isinstance(host, str) and host for host in given):
        raise SettingError("hosts: must be a list of hosts, at least one")
    return tuple(given), private


def _matches(origin: str, host: str) -> bool:
    return origin.endswith(host) if host.startswith(".") else origin == host
