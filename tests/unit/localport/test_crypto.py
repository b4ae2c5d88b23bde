"""Vectors of Port's signature and input encryption."""

from __future__ import annotations

import base64

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from port_webhook_localport import encryption
from port_webhook_localport.signature import sign

SECRET = "port-test-client-secret-0123456789abcdef"


@pytest.mark.parametrize(
    ("body", "signature"),
    [
        (
            '{"port_context":{"runId":"r_0123456789abcdef"},"service":"checkout"}',
            "v1,wvnPUuINl/LkVTySSgECeLk+T/SdCu6AXE1+UIkamqE=",
        ),
        (
            '{"port_context": {"runId": "r_0123456789abcdef"}, "service": "checkout"}',
            "v1,te5drtWSGY91Nt2xzjS6AnEF7DHRbTo3sPYvBKvctkQ=",
        ),
        ('{"name":"Zoë","emoji":"✓"}', "v1,xO993dYMXroiWjAO+bIaLrfuNt/b/SQxRJF9qLobW9s="),
        (r'{"name":"Zo\u00eb","emoji":"\u2713"}', "v1,S5zH5hAOoaxOeHMmSuLcV1JyusjcYhpayfOmQGNiGag="),
        ("{}", "v1,IFi1WqjyMRA5JCyHQHWsMcgzvN3TiPqXOGDzXcdIK8Q="),
        ("", "v1,Z4tyZ1qNdPUCCcc+ypJCh5xVSkPycFBaTMZzu5M0nuE="),
    ],
)
def test_signature_vectors(body: str, signature: str) -> None:
    assert sign(SECRET, "1700000000", body.encode()) == signature


def test_encrypted_input_vector() -> None:
    value = encryption.encrypt_input("s3cr3t", SECRET, iv=bytes(range(16)))
    assert value == "AAECAwQFBgcICQoLDA0OD75fD3qQcY7d3qL79ThJB7WMVxEC+n4="


def test_encrypted_inputs_differ_each_time() -> None:
    assert encryption.encrypt_input("s3cr3t", SECRET) != encryption.encrypt_input("s3cr3t", SECRET)


def test_client_side_encryption_opens_with_the_private_key() -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    value = base64.b64decode(encryption.encrypt_client_side("pässword", _pem(private.public_key())))
    iv, wrapped, sealed = value[:12], value[12:268], value[268:]
    key = private.decrypt(wrapped, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    assert len(key) == 32
    assert AESGCM(key).decrypt(iv, sealed, None).decode() == "pässword"


def test_client_side_keys_must_be_rsa_of_2048_bits() -> None:
    with pytest.raises(ValueError, match="PEM"):
        encryption.load_public_key("nonsense")
    with pytest.raises(ValueError, match="2048"):
        encryption.load_public_key(_pem(ec.generate_private_key(ec.SECP256R1()).public_key()))


def test_sealed_secrets_are_bound_to_their_name() -> None:
    key = bytes(32)
    sealed = encryption.seal("value", key, "A")
    assert b"value" not in sealed
    assert encryption.unseal(sealed, key, "A") == "value"
    with pytest.raises(InvalidTag):
        encryption.unseal(sealed, key, "B")


def _pem(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
