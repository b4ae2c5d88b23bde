from __future__ import annotations

import pytest

from port_webhook_handlers.agent.destinations import AllowList, DestinationError, is_callable

ALLOWED = AllowList(
    ["internal", "ci.example.com:8443", "*.svc.cluster", "169.254.169.254", "[::1]", "127.0.0.1:80"]
)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://internal/x", "internal:80"),
        ("https://INTERNAL:9000/x?y=1", "internal:9000"),
        ("https://ci.example.com:8443/", "ci.example.com:8443"),
        ("http://a.b.svc.cluster/", "a.b.svc.cluster:80"),
        ("http://127.0.0.1/", "127.0.0.1:80"),
    ],
)
def test_what_is_listed_may_be_called(url: str, place: str) -> None:
    assert ALLOWED.place(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "http://other/",
        "https://ci.example.com/",
        "http://svc.cluster/",
        "http://notsvc.cluster/",
        "http://internal.evil.com/",
        "http://internal@evil.com/",
        "http://evil.com#@internal/",
        "http://evil.com\\@internal/",
        "http://in ternal/",
        "ftp://internal/",
        "//internal/",
        "http:///x",
        "http://internal:99999/",
        "http://169.254.169.254/latest",
        "http://metadata.google.internal/",
        "http://127.0.0.1:81/",
        "http://internal/\r\nx: y",
    ],
)
def test_the_rest_may_not(url: str) -> None:
    with pytest.raises(DestinationError):
        ALLOWED.place(url)


@pytest.mark.parametrize(
    ("address", "callable_"),
    [
        ("10.1.2.3", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("fd12::1", True),
        ("93.184.216.34", True),
        ("169.254.169.254", False),
        ("169.254.0.1", False),
        ("fe80::1%eth0", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("fd00:ec2::254", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("224.0.0.1", False),
        ("no address", False),
    ],
)
def test_some_addresses_are_never_called(address: str, callable_: bool) -> None:
    assert is_callable(address) is callable_
