"""The handlers that notify, against real servers on loopback."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.bundled.services import failure
from tests.unit.bundled.smtp_server import PASSWORD, USER, SmtpServer, certificate
from tests.unit.localport.webhook import Webhook

from port_webhook_handlers.bundled import notify
from port_webhook_handlers.bundled.notify import mail, slack, teams
from port_webhook_handlers.port.lint import Known, lint
from port_webhook_handlers.sdk import Failure, InputError, Success
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.testing import Invocation, invoke

SECRET_PATH = "/services/T0/B0/s3cr3t-p4th"


@pytest.fixture
def chat() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.close()


def tell(handler: Any, url: str, message: str = "hello", **settings: Any) -> Invocation:
    host = url.partition("://")[2].partition("/")[0]
    return invoke(
        handler,
        inputs={"message": message},
        trigger={"origin": "UI", "by": {"user": {"email": "ann@example.com"}}},
        secrets={slack.URL: url, teams.URL: url},
        settings={"hosts": [host], "private": True} | settings,
    )


CHATS = [slack.notify_by_slack, teams.notify_by_teams]


def test_slack_gets_the_message(chat: Webhook) -> None:
    outcome = tell(
        slack.notify_by_slack,
        chat.url + SECRET_PATH,
        "disk <!channel> & {run}",
        template="{message} ({by}, {run})",
    )
    assert outcome.result == Success(f"The message was sent to {chat.url[7:]}.")
    (request,) = chat.received
    assert request.path == SECRET_PATH
    assert request.json == {"text": "disk &lt;!channel&gt; &amp; {run} (ann@example.com, r_0123456789abcdef)"}


def test_teams_gets_a_card(chat: Webhook) -> None:
    outcome = invoke(
        teams.notify_by_teams,
        inputs={"title": "Cart", "message": "is down"},
        secrets={teams.URL: chat.url},
        settings={"hosts": [chat.url[7:]], "private": True},
    )
    assert isinstance(outcome.result, Success)
    (attachment,) = chat.received[0].json["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert [block["text"] for block in attachment["content"]["body"]] == ["Cart", "is down"]


@pytest.mark.parametrize("handler", CHATS)
def test_nothing_of_the_address_is_reported(handler: Any, chat: Webhook) -> None:
    chat.status, chat.reply = 404, b"no_service"
    outcome = tell(handler, chat.url + SECRET_PATH)
    assert failure(outcome) == f"{chat.url[7:]} answered 404: no_service."
    nobody = tell(handler, "http://127.0.0.1:1" + SECRET_PATH)
    assert "127.0.0.1:1 cannot be reached" in failure(nobody)
    broken = tell(handler, "https://hooks slack" + SECRET_PATH)
    assert failure(broken).startswith(
        f"The message was not sent: secret {handler_of(handler).secrets[0]} must"
    )
    for found in (outcome, nobody, broken):
        assert "s3cr3t" not in json.dumps(found.messages)


@pytest.mark.parametrize("handler", CHATS)
def test_only_known_hosts_are_called(handler: Any, chat: Webhook) -> None:
    assert "which is not allowed" in failure(tell(handler, chat.url, hosts=None))
    assert "must be an https address" in failure(tell(handler, chat.url, private=False))
    secure = chat.url.replace("http:", "https:")
    assert "may not call" in failure(tell(handler, secure, private=False))
    assert "hosts: must be a list" in failure(tell(handler, chat.url, hosts="x"))
    assert failure(tell(handler, chat.url, template="{nobody}")).startswith(
        "template: {nobody} does not exist; known here: action, by, message, run"
    )
    assert chat.received == []


def test_a_busy_chat_is_asked_again(chat: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    chat.status = 503
    assert "answered 503" in failure(tell(slack.notify_by_slack, chat.url))
    assert len(chat.received) == 3


@pytest.mark.parametrize("handler", [*CHATS, mail.notify_by_mail])
def test_a_message_twice_is_better_than_none(handler: Any) -> None:
    assert handler_of(handler).on_interrupt == "retry"


def test_an_automation_runs_any_of_them() -> None:
    automation = notify.on_service_failure(action="notify_by_mail", inputs={"to": ["ops@example.com"]})
    body = automation.to_body()
    assert body["identifier"] == "notify_by_mail_on_service_failure"
    assert body["invocationMethod"]["url"] == "port-api:/v1/actions/notify_by_mail/runs"
    assert set(body["invocationMethod"]["body"]["properties"]) == {"to", "message"}
    assert lint([automation], known=Known(actions={"notify_by_mail"}, routes=())) == []


# --- E-mail -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("smtp"))


@pytest.fixture
def smtp(pem: Path) -> Iterator[SmtpServer]:
    server = SmtpServer(pem)
    yield server
    server.close()


def send(smtp: SmtpServer, pem: Path, *, password: str = PASSWORD, **options: Any) -> Invocation:
    inputs = {"to": ["ops@example.com"], "subject": "Cart – down", "message": "It is down.\n.\nReally."}
    keys = ("to", "subject", "message")
    given = {key: options.pop(key) for key in keys if key in options}
    settings = {
        "server": "127.0.0.1",
        "port": smtp.port,
        "ca_file": str(pem),
        "user": USER,
        "sender": "Port <port@example.com>",
        "recipients": ["example.com", "boss@example.org"],
    } | options
    return invoke(
        mail.notify_by_mail, inputs=inputs | given, secrets={mail.PASSWORD: password}, settings=settings
    )


def test_a_mail_arrives(smtp: SmtpServer, pem: Path) -> None:
    outcome = send(smtp, pem, to=["ops@example.com", "boss@example.org"], template="{message}\n-- \n{by}")
    assert outcome.result == Success("The message was sent to ops@example.com, boss@example.org.")
    ((recipients, message),) = smtp.mails
    assert recipients == ["ops@example.com", "boss@example.org"]
    assert message["Message-ID"] == "<r_0123456789abcdef@example.com>"
    assert message["From"] == "Port <port@example.com>"
    from email.header import decode_header, make_header

    assert str(make_header(decode_header(message["Subject"]))) == "Cart – down"
    content = message.get_payload(decode=True)
    assert isinstance(content, bytes)
    assert content.decode().splitlines() == ["It is down.", ".", "Really.", "-- ", "an automation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": ["x@evil.example"]}, "inputs.to: x@evil.example is not allowed"),
        ({"to": ["other@example.org"]}, "inputs.to: other@example.org is not allowed"),
        ({"recipients": None}, "notify_by_mail.recipients: must be a list of texts"),
        ({"tls": "none"}, "notify_by_mail.tls: none would send the password in plain text"),
        ({"tls": "ssl"}, "notify_by_mail.tls: must be one of starttls, implicit, none"),
        ({"sender": "Port"}, "notify_by_mail.sender: must be an e-mail address"),
        ({"template": "{x}"}, "template: {x} does not exist"),
    ],
)
def test_what_is_not_sent(options: dict[str, Any], message: str, smtp: SmtpServer, pem: Path) -> None:
    assert failure(send(smtp, pem, **options)).startswith(message)
    assert smtp.mails == []


@pytest.mark.parametrize(
    "inputs",
    [
        {"subject": "a\r\nBcc: x@evil.example"},
        {"subject": "a\nb"},
        {"to": ["ops@example.com\r\nBcc: x@evil.example"]},
        {"to": ["ops@example.com, x@evil.example"]},
    ],
)
def test_headers_cannot_be_smuggled_in(inputs: dict[str, Any], smtp: SmtpServer, pem: Path) -> None:
    try:
        refused = isinstance(send(smtp, pem, **inputs).result, Failure)
    except InputError:
        refused = True
    assert refused
    assert smtp.mails == []


def test_a_wrong_password_is_not_shown(smtp: SmtpServer, pem: Path) -> None:
    outcome = send(smtp, pem, password="another-secret")
    assert failure(outcome) == f"127.0.0.1 refused user {USER} (535): correct secret {mail.PASSWORD}."
    assert "another-secret" not in json.dumps(outcome.messages)


def test_a_password_that_smtp_cannot_send_is_not_shown(smtp: SmtpServer, pem: Path) -> None:
    outcome = send(smtp, pem, password="another-secrét")
    assert failure(outcome).startswith(f"notify_by_mail.user: it and secret {mail.PASSWORD} must be ASCII")
    assert "é" not in json.dumps(outcome.messages, ensure_ascii=False)
    assert smtp.mails == []


def test_a_server_that_cannot_be_trusted_gets_nothing(smtp: SmtpServer, pem: Path) -> None:
    assert "cannot be used" in failure(send(smtp, pem, ca_file=""))
    assert smtp.mails == []


def test_recipients_that_are_refused_are_named(smtp: SmtpServer, pem: Path) -> None:
    smtp.refuse["RCPT ops@example.com"] = "550 nobody"
    outcome = send(smtp, pem, to=["ops@example.com", "boss@example.org"])
    assert failure(outcome) == "127.0.0.1 refused 1 of 2 recipients: ops@example.com (550)."
    assert [recipients for recipients, _ in smtp.mails] == [["boss@example.org"]]
    assert failure(send(smtp, pem)) == "127.0.0.1 refused 1 of 1 recipients: ops@example.com (550)."


def test_what_may_pass_is_tried_again(smtp: SmtpServer, pem: Path) -> None:
    smtp.refuse["RCPT ops@example.com"] = "451 come back"
    assert send(smtp, pem).retryable
    smtp.refuse = {"DATA": "452 full"}
    outcome = send(smtp, pem)
    assert outcome.retryable
    assert outcome.result == Failure("127.0.0.1 refused the message (452): full.")
    smtp.refuse = {"DATA": "554 no"}
    assert not send(smtp, pem).retryable
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome = send(smtp, pem, port=port)
    assert outcome.retryable
    assert outcome.result == Failure(f"127.0.0.1:{port} cannot be used: Connection refused.")


def test_interrupted_after_sending_the_second_mail_is_the_same(smtp: SmtpServer, pem: Path) -> None:
    smtp.drop_data = True
    assert send(smtp, pem).retryable
    smtp.drop_data = False
    assert isinstance(send(smtp, pem).result, Success)
    assert len({message["Message-ID"] for _, message in smtp.mails}) == 1
    assert len(smtp.mails) == 2
