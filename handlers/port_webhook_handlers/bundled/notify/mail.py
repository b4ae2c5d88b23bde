"""Sends an e-mail through an SMTP server; its password is a secret of the stack.

handlerSettings:
  notify_by_mail:
    server: smtp.example.com
    sender: Port <port@example.com>
    user: port@example.com
    recipients: [example.com]
"""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Annotated

from port_webhook_handlers.bundled.notify import _chat
from port_webhook_handlers.bundled.options import Options, own
from port_webhook_handlers.sdk import (
    Email,
    Failure,
    Field,
    Inputs,
    MultiLine,
    Result,
    RetryableError,
    Run,
    SettingError,
    Success,
    action,
)

PASSWORD = "SMTP_PASSWORD"  # noqa: S105 - the name of a secret, not its value
"""The secret that holds the password of the server's user."""

_PORTS = {"starttls": 587, "implicit": 465, "none": 25}
_SECONDS = 20


class MailMessage(Inputs):
    """What the form asks."""

    to: Annotated[list[Email], Field(title="To", min_items=1, max_items=20)]
    subject: Annotated[str, Field(title="Subject", pattern=r"[^\r\n]+", max_length=200)]
    message: Annotated[MultiLine, Field(title="Message", min_length=1, max_length=20000)]


@dataclass(frozen=True, slots=True)
class _Server:
    """How mail is sent; see docs/bundled-handlers.md."""

    host: str
    port: int
    tls: str
    user: str | None
    sender: str
    recipients: tuple[str, ...]
    context: ssl.SSLContext


@action(
    "notify_by_mail",
    title="Notify by e-mail",
    description="Sends an e-mail to addresses that are allowed.",
    icon="Email",
    operation="CREATE",
    secrets=[PASSWORD],
    timeout_seconds=120,
    on_interrupt="retry",
)
def notify_by_mail(inputs: MailMessage, run: Run) -> Result:
    """Sends one message to `inputs.to`; every attempt has the same Message-ID, so that mail systems can tell."""
    try:
        server = _server(run)
        for address in inputs.to:
            _require_allowed(address, server.recipients)
        message = _message(inputs, run, server)
    except SettingError as error:
        return Failure(str(error))
    try:
        refused = _send(message, server, run)
    except smtplib.SMTPAuthenticationError as error:
        return Failure(
            f"{server.host} refused user {server.user} ({error.smtp_code}): correct secret {PASSWORD}."
        )
    except smtplib.SMTPRecipientsRefused as error:
        refused = error.recipients
        # A server that does not know the sender yet may ask to come back (greylisting).
        if all(code < 500 for code, _ in refused.values()):
            raise RetryableError(f"{server.host} takes no recipient now: {_listed(refused)}.") from None
    except smtplib.SMTPResponseException as error:
        refusal = _refusal(server, error)
        if error.smtp_code < 500:
            raise RetryableError(refusal) from None
        return Failure(refusal)
    except (smtplib.SMTPNotSupportedError, ssl.SSLError) as error:
        return Failure(_trouble(server, error))
    except OSError as error:
        raise RetryableError(_trouble(server, error)) from None
    if refused:
        return Failure(
            f"{server.host} refused {len(refused)} of {len(inputs.to)} recipients: {_listed(refused)}."
        )
    return Success(f"The message was sent to {', '.join(inputs.to)}.")


def _server(run: Run) -> _Server:
    known = ("server", "port", "tls", "ca_file", "user", "sender", "recipients")
    options = own(run, known)
    tls = options.choice("tls", tuple(_PORTS), "starttls")
    server = _Server(
        host=options.text("server"),
        port=options.whole("port", _PORTS[tls], lowest=1, highest=65535),
        tls=tls,
        user=options.text("user", "") or None,
        sender=options.text("sender"),
        recipients=options.texts("recipients"),
        context=_context(options, options.text("ca_file", "") or None),
    )
    if tls == "none" and server.user:
        raise options.error("tls", "none would send the password in plain text; use starttls or implicit")
    # Else the error would come from smtplib, with the first character of the password that does not fit.
    if server.user and not (server.user + run.secret(PASSWORD)).isascii():
        raise options.error("user", f"it and secret {PASSWORD} must be ASCII, as SMTP logs in; correct them")
    return server


def _context(options: Options, ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise options.error(
            "ca_file", f"{ca_file} holds no certificates ({error.strerror or error}); correct it"
        ) from None


def _require_allowed(address: str, recipients: tuple[str, ...]) -> None:
    try:
        parsed = Address(addr_spec=address)
    except (ValueError, IndexError, MessageError):
        raise SettingError(f"inputs.to: {address!r} is no e-mail address; correct it") from None
    domain = parsed.domain.lower()
    if not any(
        address.lower() == allowed.lower() if "@" in allowed else domain == allowed.lower()
        for allowed in recipients
    ):
        raise SettingError(
            f"inputs.to: {address} is not allowed; allowed are {', '.join(recipients)} "
            "(recipients in the settings of this handler)"
        )


def _message(inputs: MailMessage, run: Run, server: _Server) -> EmailMessage:
    local, _, domain = parseaddr(server.sender)[1].rpartition("@")
    if not local or not domain:
        raise SettingError(f"{run.action}.sender: must be an e-mail address, such as Port <port@example.com>")
    message = EmailMessage(SMTP)
    message["Message-ID"] = f"<{run.idempotency_key}@{domain}>"
    message["Date"] = format_datetime(datetime.now(UTC))
    message["From"] = server.sender
    message["To"] = ", ".join(inputs.to)
    message["Subject"] = _chat.templated(run, inputs.subject, "subject").replace("\n", " ")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_chat.templated(run, inputs.message))
    return message


def _send(message: EmailMessage, server: _Server, run: Run) -> dict[str, tuple[int, bytes]]:
    """Sends it and gives the recipients that were refused, unless all were."""
    context = server.context
    seconds = max(1.0, min(_SECONDS, run.seconds_left / 4))
    with (
        smtplib.SMTP_SSL(server.host, server.port, timeout=seconds, context=context)
        if server.tls == "implicit"
        else smtplib.SMTP(server.host, server.port, timeout=seconds)
    ) as connection:
        if server.tls == "starttls":
            connection.starttls(context=context)
        if server.user:
            connection.login(server.user, run.secret(PASSWORD).strip())
        return connection.send_message(message)


def _refusal(server: _Server, error: smtplib.SMTPResponseException) -> str:
    said = (
        error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
    )
    return f"{server.host} refused the message ({error.smtp_code}): {said}."


def _listed(refused: dict[str, tuple[int, bytes]]) -> str:
    return "; ".join(f"{address} ({code})" for address, (code, _) in sorted(refused.items()))


def _trouble(server: _Server, error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{server.host}:{server.port} cannot be used: {said}."
