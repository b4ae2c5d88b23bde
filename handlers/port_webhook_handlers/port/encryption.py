"""Encrypted user inputs.

Port encrypts an input that asks for it before it stores or sends it. Two schemes are documented:

- `aes256-gcm`: base64 of IV (16 bytes), ciphertext and tag (16 bytes), under the first 32 bytes of the
  organisation's client secret;
- `client-side`: base64 of IV (12 bytes), an AES-256 key wrapped with RSA-OAEP (SHA-256), and ciphertext with tag.

The plaintext of an object input is its JSON text.
"""

import binascii
import os
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_KEY_BYTES: Final = 32
_IV_BYTES: Final = 16
_TAG_BYTES: Final = 16
_CLIENT_IV_BYTES: Final = 12


class DecryptionError(ValueError):
    """A value that no key at hand opens. The message holds neither the value nor a key."""


def decrypt_aes256_gcm(value: str, secrets: Sequence[bytes | str]) -> bytes:
    """The plaintext of an input with `"encryption": "aes256-gcm"`.

    Args:
        value: the ciphertext as Port sends it.
        secrets: client secrets that may have encrypted it, newest first.

    Raises:
        DecryptionError: not such a ciphertext, or of another secret.
        ValueError: a secret has fewer than 32 bytes.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = _decode(value, _IV_BYTES + _TAG_BYTES)
    for secret in secrets:
        try:
            return AESGCM(_aes_key(secret)).decrypt(data[:_IV_BYTES], data[_IV_BYTES:], None)
        except InvalidTag:
            continue
    raise DecryptionError(
        "the value was encrypted under another client secret, or altered; check the decryption keys"
    )


def encrypt_aes256_gcm(plaintext: bytes, secret: bytes | str, *, iv: bytes | None = None) -> str:
    """What Port sends for this plaintext.

    Args:
        iv: 16 bytes; random if None.

    Raises:
        ValueError: the secret has fewer than 32 bytes.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    iv = os.urandom(_IV_BYTES) if iv is None else iv
    return b64encode(iv + AESGCM(_aes_key(secret)).encrypt(iv, plaintext, None)).decode()


def decrypt_client_side(value: str, private_keys: Sequence[bytes | str]) -> bytes:
    """The plaintext of an input with `"algorithm": "client-side"`.

    Args:
        value: the ciphertext as Port sends it.
        private_keys: RSA private keys (PEM, not encrypted) whose public key the definition may have named.

    Raises:
        DecryptionError: not such a ciphertext, or for another key.
        ValueError: a key is not an RSA private key.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = _decode(value, _CLIENT_IV_BYTES + _TAG_BYTES)
    iv, rest = data[:_CLIENT_IV_BYTES], data[_CLIENT_IV_BYTES:]
    for pem in private_keys:
        key = _private_key(pem)
        wrapped = key.key_size // 8
        if len(rest) < wrapped + _TAG_BYTES:
            continue
        try:
            return AESGCM(key.decrypt(rest[:wrapped], _oaep())).decrypt(iv, rest[wrapped:], None)
        except (ValueError, InvalidTag):
            continue
    raise DecryptionError(
        "the value was encrypted for another public key, or altered; check the decryption keys"
    )


def encrypt_client_side(plaintext: bytes, public_key: bytes | str) -> str:
    """What a browser sends for this plaintext under the RSA public key (PEM) of the definition.

    Raises:
        ValueError: not an RSA public key.
    """
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(_bytes(public_key))
    if not isinstance(key, RSAPublicKey):
        raise ValueError("the key is not an RSA public key; give one in PEM (SubjectPublicKeyInfo)")
    content_key, iv = os.urandom(_KEY_BYTES), os.urandom(_CLIENT_IV_BYTES)
    return b64encode(
        iv + key.encrypt(content_key, _oaep()) + AESGCM(content_key).encrypt(iv, plaintext, None)
    ).decode()


def _decode(value: object, least: int) -> bytes:
    if not isinstance(value, str):
        raise DecryptionError(
            "the value is not a string; send the encrypted input itself ({{ .inputs.NAME }})"
        )
    try:
        data = b64decode(value.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise DecryptionError("the value is not base64; is the input encrypted in its definition?") from None
    if len(data) < least:
        raise DecryptionError(
            "the value is too short for a ciphertext; is the input encrypted in its definition?"
        )
    return data


def _aes_key(secret: bytes | str) -> bytes:
    key = _bytes(secret)
    if len(key) < _KEY_BYTES:
        raise ValueError(
            f"a decryption secret has fewer than {_KEY_BYTES} bytes; give Port's whole client secret"
        )
    return key[:_KEY_BYTES]


def _private_key(pem: bytes | str) -> "RSAPrivateKey":
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_bytes(pem), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("a decryption key is not an RSA private key; give it in PEM without a passphrase")
    return key


def _oaep() -> "OAEP":
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.hashes import SHA256

    return OAEP(mgf=MGF1(algorithm=SHA256()), algorithm=SHA256(), label=None)


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text
