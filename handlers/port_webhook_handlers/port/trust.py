"""Certificate authorities: the system's, those that the environment names, and a file of one's own.

Python looks at `SSL_CERT_FILE` and `SSL_CERT_DIR`, the library requests at `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE`;
whoever sets one of them means all connections of the agent.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final

_FURTHER: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_OF_PYTHON: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def client_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """A context for clients that checks certificates and names.

    Args:
        ca_file: certificates (PEM) to trust besides.

    Raises:
        OSError: a file cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):
        # An interpreter that was built elsewhere, or an image without certificates.
        import certifi

        context.load_verify_locations(cafile=certifi.where())
    for path in (*map(Path, filter(None, map(os.environ.get, _FURTHER))), ca_file):
        if path is not None and path.is_dir():
            context.load_verify_locations(capath=str(path))
        elif path is not None:
            context.load_verify_locations(cafile=str(path))
    return context


def is_customised(ca_file: Path | None) -> bool:
    """Whether more is trusted than what the system does."""
    return ca_file is not None or any(os.environ.get(name) for name in (*_OF_PYTHON, *_FURTHER))


def as_pem(context: ssl.SSLContext) -> str:
    """The authorities of a context, for libraries with a TLS of their own."""
    return "".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True)))
