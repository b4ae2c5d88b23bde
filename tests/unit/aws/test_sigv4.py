"""Our signatures against botocore's signer."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from port_webhook_handlers.runtime.aws.sigv4 import Credentials, signed_headers

NOW = 1_795_500_000.0
names = st.from_regex(r"x-amz-[a-z]{1,10}|content-type", fullmatch=True)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30).filter(str.strip)
segments = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/?#%"), min_size=1, max_size=10
)


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    monkeypatch.setattr(
        "botocore.auth.get_current_datetime", lambda *args, **kwargs: moment.replace(tzinfo=None)
    )


@settings(max_examples=200, deadline=None)
@given(
    headers=st.dictionaries(names, texts, max_size=4),
    path=st.lists(segments, max_size=4),
    body=st.binary(max_size=200),
    token=st.none() | st.from_regex(r"[A-Za-z0-9/+=]{1,40}", fullmatch=True),
    service=st.sampled_from(["sqs", "dynamodb", "secretsmanager", "lambda"]),
    port=st.none() | st.integers(1024, 65535),
)
def test_every_request_is_signed_as_botocore_signs_it(
    headers: dict[str, str], path: list[str], body: bytes, token: str | None, service: str, port: int | None
) -> None:
    from urllib.parse import quote

    headers = {
        name: value for name, value in headers.items() if name not in ("x-amz-date", "x-amz-security-token")
    }
    sent_path = "/" + "/".join(quote(part, safe="") for part in path if part not in (".", ".."))
    host = f"{service}.eu-west-1.amazonaws.com" + (f":{port}" if port else "")
    ours = signed_headers(
        Credentials("AKID", "secret", token),
        "eu-west-1",
        service,
        "POST",
        host,
        sent_path,
        headers,
        body,
        NOW,
    )
    request: Any = AWSRequest("POST", f"https://{host}{sent_path}", headers=dict(headers), data=body)
    SigV4Auth(BotocoreCredentials("AKID", "secret", token), service, "eu-west-1").add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]
    assert ours["x-amz-date"] == request.headers["X-Amz-Date"]


def test_a_secret_is_in_no_representation() -> None:
    assert "secret" not in repr(Credentials("AKID", "secret", "session"))
    assert "session" not in repr(Credentials("AKID", "secret", "session"))
