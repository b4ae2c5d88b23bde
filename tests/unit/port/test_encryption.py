import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from port_webhook_handlers.port.encryption import (
    DecryptionError,
    decrypt_aes256_gcm,
    decrypt_client_side,
    encrypt_aes256_gcm,
    encrypt_client_side,
)

SECRET = "port-test-client-secret-0123456789abcdef"
VALUE = "AAECAwQFBgcICQoLDA0OD75fD3qQcY7d3qL79ThJB7WMVxEC+n4="
PLAIN = b"s3cr3t"


def pems(key):
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def key_pair():
    return pems(rsa.generate_private_key(public_exponent=65537, key_size=2048))


@pytest.fixture(scope="module")
def other_pair():
    return pems(rsa.generate_private_key(public_exponent=65537, key_size=3072))


def test_published_vector():
    assert decrypt_aes256_gcm(VALUE, [SECRET]) == PLAIN
    assert decrypt_aes256_gcm(VALUE, [SECRET.encode()]) == PLAIN
    assert encrypt_aes256_gcm(PLAIN, SECRET, iv=bytes(range(16))) == VALUE


def test_older_secrets_are_tried():
    assert decrypt_aes256_gcm(VALUE, ["another secret, long enough for a key", SECRET]) == PLAIN


@pytest.mark.parametrize("plaintext", [b"", b"x", "Zoë ✓".encode(), b"\x00" * 5000])
def test_aes_round_trip_with_fresh_iv(plaintext):
    first, second = (encrypt_aes256_gcm(plaintext, SECRET) for _ in range(2))
    assert first != second
    assert decrypt_aes256_gcm(first, [SECRET]) == plaintext


def test_client_side_round_trip(key_pair, other_pair):
    private, public = key_pair
    value = encrypt_client_side(PLAIN, public)
    assert decrypt_client_side(value, [private]) == PLAIN
    assert decrypt_client_side(value, [other_pair[0].decode(), private.decode()]) == PLAIN
    assert decrypt_client_side(encrypt_client_side(b"", other_pair[1]), [private, other_pair[0]]) == b""


def test_client_side_layout(key_pair):
    assert len(base64.b64decode(encrypt_client_side(PLAIN, key_pair[1]))) == 12 + 256 + len(PLAIN) + 16


GARBAGE = [
    "",
    "not base64!",
    "ä" * 50,
    "AAAA",
    base64.b64encode(b"x" * 27).decode(),
    VALUE[:-4],
    "A" + VALUE[1:-8],
]


@pytest.mark.parametrize("value", [*GARBAGE, None, 5, {"a": 1}])
def test_garbage_is_one_kind_of_error_without_the_value(value, key_pair):
    for attempt in (
        lambda: decrypt_aes256_gcm(value, [SECRET]),
        lambda: decrypt_client_side(value, [key_pair[0]]),
    ):
        with pytest.raises(DecryptionError) as caught:
            attempt()
        assert SECRET not in str(caught.value)
        assert not value or str(value) not in str(caught.value)


def test_altered_and_wrong_keys(key_pair, other_pair):
    data = bytearray(base64.b64decode(VALUE))
    data[20] ^= 1
    with pytest.raises(DecryptionError, match="another client secret"):
        decrypt_aes256_gcm(base64.b64encode(data).decode(), [SECRET])
    with pytest.raises(DecryptionError):
        decrypt_aes256_gcm(VALUE, [])
    value = encrypt_client_side(PLAIN, key_pair[1])
    with pytest.raises(DecryptionError, match="another public key"):
        decrypt_client_side(value, [other_pair[0]])
    data = bytearray(base64.b64decode(value))
    data[-1] ^= 1
    with pytest.raises(DecryptionError):
        decrypt_client_side(base64.b64encode(data).decode(), [key_pair[0]])


def test_unusable_keys_are_configuration_errors():
    with pytest.raises(ValueError, match="32 bytes") as caught:
        decrypt_aes256_gcm(VALUE, ["short-secret"])
    assert "short-secret" not in str(caught.value)
    private, public = pems(ec.generate_private_key(ec.SECP256R1()))
    value = base64.b64encode(b"x" * 400).decode()
    for key in (private, b"-----BEGIN nonsense", ""):
        with pytest.raises(ValueError, match="RSA private key"):
            decrypt_client_side(value, [key])
    with pytest.raises(ValueError, match="RSA public key"):
        encrypt_client_side(PLAIN, public)
