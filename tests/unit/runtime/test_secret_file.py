import stat
from dataclasses import replace
from pathlib import Path

import pytest

from port_webhook_handlers.runtime.secret_file import (
    ApiCredentials,
    LiveSecrets,
    SecretFile,
    SecretFileError,
    SigningSecret,
    StoredSecrets,
)

CONTENT = StoredSecrets(
    signing=(SigningSecret("first-secret"), SigningSecret("old-secret", 1000.0)),
    api=ApiCredentials("id", "api-secret"),
    decryption=("decryption-secret",),
    secrets={"TOKEN": "token-secret"},
    previous=(SigningSecret("rotated-secret", 2000.0),),
)


@pytest.fixture
def store(tmp_path: Path) -> SecretFile:
    store = SecretFile(tmp_path / "secrets" / "store", tmp_path / "keys" / "store.key")
    store.write(CONTENT)
    return store


def test_round_trip(store: SecretFile) -> None:
    assert store.read() == CONTENT


def test_nothing_is_readable_at_rest(store: SecretFile) -> None:
    data = store.path.read_bytes()
    assert b"secret" not in data
    for path in (store.path, store.key_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in repr(CONTENT).replace("secrets", "").replace("client_secret", "")


def test_a_changed_file_is_refused(store: SecretFile) -> None:
    data = bytearray(store.path.read_bytes())
    data[-1] ^= 1
    store.path.write_bytes(bytes(data))
    with pytest.raises(SecretFileError, match="was changed"):
        store.read()


def test_a_missing_key_is_named(store: SecretFile) -> None:
    store.key_path.unlink()
    with pytest.raises(SecretFileError, match=r"store\.key"):
        store.read()


def test_a_key_others_can_read_is_refused(store: SecretFile) -> None:
    store.key_path.chmod(0o644)
    with pytest.raises(SecretFileError, match="chmod 600"):
        store.read()


def test_a_rewrite_changes_the_stamp_and_keeps_the_key(store: SecretFile) -> None:
    before, key = store.stamp(), store.key()
    store.write(StoredSecrets())
    assert store.stamp() != before
    assert store.key() == key
    assert store.read() == StoredSecrets()


def test_delete(store: SecretFile) -> None:
    store.delete()
    store.delete()
    assert store.stamp() is None
    assert store.key_path.exists()
    store.delete(with_key=True)
    assert not store.key_path.exists()


def test_ended_signing_secrets_are_not_active() -> None:
    assert CONTENT.active_signing(1000.0) == ["first-secret", "old-secret", "rotated-secret"]
    assert CONTENT.active_signing(1000.1) == ["first-secret", "rotated-secret"]
    assert CONTENT.active_signing(2000.1) == ["first-secret"]


def test_a_rotated_secret_verifies_until_its_end_and_decrypts(store: SecretFile) -> None:
    live = LiveSecrets(store)
    assert live.signing(999.0) == [b"first-secret", b"old-secret", b"rotated-secret"]
    assert live.content.decryption == ("decryption-secret", "rotated-secret")
    store.write(replace(CONTENT, signing=(SigningSecret("first-secret"),), previous=()))
    assert live.refresh()
    assert live.signing(999.0) == [b"first-secret"]
    assert live.content.decryption == ("decryption-secret",)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {"colour": 1},
        {"signing": [{"value": ""}]},
        {"signing": [{"value": "secret-text", "not_after": "soon"}]},
        {"api": {"client_id": "secret-text"}},
        {"decryption": [1]},
        {"secrets": {"A": 1}},
    ],
)
def test_wrong_content_is_refused_without_showing_it(body: object) -> None:
    with pytest.raises(SecretFileError) as caught:
        StoredSecrets.from_json(body)
    assert "secret-text" not in str(caught.value)
