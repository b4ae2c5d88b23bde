"""Encrypted inputs as Port makes them, and encryption of what local Port keeps at rest."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

_INPUT_IV_BYTES = 16
_CLIENT_SIDE_IV_BYTES = 12
_KEY_BYTES = 32


def encrypt_input(plaintext: str, client_secret: str, *, iv: bytes | None = None) -> str:
    """An input with `encryption: aes256-gcm`: base64 of IV (16 bytes), ciphertext, tag (Port's rule).

    Args:
        plaintext: the input, or the JSON text of an object.
        client_secret: its first 32 UTF-8 bytes are the key, without derivation.
        iv: 16 bytes, random when absent; only a test vector fixes it.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_INPUT_IV_BYTES) if iv is None else iv
    sealed = AESGCM(client_secret.encode()[:_KEY_BYTES]).encrypt(nonce, plaintext.encode(), None)
    return base64.b64encode(nonce + sealed).decode("ascii")


def load_public_key(pem: str) -> RSAPublicKey:
    """The RSA key of a client-side encrypted input.

    Raises:
        ValueError: not a PEM public key, not RSA, or shorter than 2048 bits (Port's minimum).
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is not a PEM public key") from None
    if not isinstance(key, RSAPublicKey) or key.key_size < 2048:
        raise ValueError("is not an RSA key of 2048 bits or more")
    return key


def encrypt_client_side(plaintext: str, pem: str) -> str:
    """An input with `client-side` encryption: base64 of IV (12 bytes), wrapped key, ciphertext with tag.

    A random AES-256 key is wrapped by RSA-OAEP with SHA-256 (Port's rule).

    Raises:
        ValueError: the key cannot be used, see `load_public_key`.
    """
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256

    content_key = AESGCM.generate_key(bit_length=256)
    wrapped = load_public_key(pem).encrypt(content_key, OAEP(MGF1(SHA256()), SHA256(), None))
    iv = os.urandom(_CLIENT_SIDE_IV_BYTES)
    sealed = AESGCM(content_key).encrypt(iv, plaintext.encode(), None)
    return base64.b64encode(iv + wrapped + sealed).decode("ascii")


def seal(value: str, key: bytes, name: str) -> bytes:
    """Encrypts an organisation secret for the database, bound to its name."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, value.encode(), name.encode())


def unseal(sealed: bytes, key: bytes, name: str) -> str:
    """The reverse of `seal`."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key).decrypt(sealed[:12], sealed[12:], name.encode()).decode()
