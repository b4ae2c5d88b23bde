"""The secrets of a process in a cluster, and what a rotation replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from port_webhook_handlers.runtime.kubernetes.mounted import MountedSecrets
from port_webhook_handlers.runtime.secret_file import LiveSecrets, SecretFileError

FORMER = [{"value": "former", "not_after": 2_000_000_000.0}]


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    for folder in ("secrets", "previous"):
        (tmp_path / folder).mkdir()
    content = {"signing": [{"value": "new", "not_after": None}]}
    (tmp_path / "secrets" / "secrets.json").write_text(json.dumps(content))
    return tmp_path


def test_a_former_secret_comes_and_goes(mounts: Path) -> None:
    secrets = LiveSecrets(MountedSecrets.below(mounts))
    assert secrets.signing(0) == [b"new"]
    previous = mounts / "previous" / "previous.json"
    previous.write_text(json.dumps(FORMER))
    assert secrets.refresh()
    assert set(secrets.signing(0)) == {b"new", b"former"}
    assert "former" in secrets.content.decryption
    previous.unlink()
    assert secrets.refresh()
    assert secrets.signing(0) == [b"new"]


@pytest.mark.parametrize("text", ["", "{}", '[{"value": "former"', '[{"value": ""}]'])
def test_what_cannot_be_read_is_named_and_changes_nothing(mounts: Path, text: str) -> None:
    previous = mounts / "previous" / "previous.json"
    previous.write_text(json.dumps(FORMER))
    errors: list[SecretFileError] = []
    secrets = LiveSecrets(MountedSecrets.below(mounts), on_error=errors.append)
    previous.write_text(text)
    assert secrets.refresh()
    assert set(secrets.signing(0)) == {b"new", b"former"}
    assert ["previous" in str(error) and "former" not in str(error) for error in errors] == [True]
