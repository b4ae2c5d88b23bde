"""Certificate authorities: the system's, those that the environment names, and a file of one's own.

Python looks at `SSL_CERT_FILE` and `SSL_CERT_DIR`, the library requests at `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE`;
whoever sets one of them means all connections of the agent or listener.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_FURTHER: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_OF_PYTHON: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# OpenSSL looks up certificates in a folder by names that `openssl rehash` gives.
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


def client_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """A context for clients that checks certificates and names.

    Args:
        ca_file: certificates (PEM) to trust besides.

    Raises:
        OSError: a file cannot be read or holds no certificate; the text names it.
    """
    context = ssl.create_default_context()
    if not (ssl.get_default_verify_paths().cafile or any(_in_folders(_system_folders()))):
        # An interpreter that was built elsewhere, or an image without certificates.
        import certifi

        context.load_verify_locations(cafile=certifi.where())
    for path in _further(ca_file):
        try:
            folder = path.is_dir()
            context.load_verify_locations(
                cafile=None if folder else str(path), capath=str(path) if folder else None
            )
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror
            raise OSError(f"no authorities can be read from {path}: {reason}") from None
    return context


def is_customised(ca_file: Path | None) -> bool:
    """Whether more is trusted than what the system does."""
    return ca_file is not None or any(os.environ.get(name) for name in (*_OF_PYTHON, *_FURTHER))


def authorities_pem(ca_file: Path | None) -> str:
    """The same authorities as PEM, for libraries with a TLS of their own.

    Args:
        ca_file: as in `client_context`.

    Raises:
        OSError: as in `client_context`.
    """
    context = client_context(ca_file)
    # A context knows what is in a folder only once a connection has asked for it.
    for path in _in_folders([*_system_folders(), *_further(ca_file)]):
        with contextlib.suppress(OSError):
            context.load_verify_locations(cafile=str(path))
    return "".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True)))


def _further(ca_file: Path | None) -> list[Path]:
    named = [Path(value) for value in map(os.environ.get, _FURTHER) if value]
    return named if ca_file is None else [*named, ca_file]


def _system_folders() -> list[Path]:
    paths = ssl.get_default_verify_paths()
    value = os.environ.get(paths.openssl_capath_env, paths.openssl_capath)
    return [Path(part) for part in value.split(os.pathsep) if part]


def _in_folders(folders: Iterable[Path]) -> Iterator[Path]:
    """Files of certificates in those of the paths that are folders which can be read."""
    for folder in folders:
        with contextlib.suppress(OSError):
            yield from (path for path in sorted(folder.iterdir()) if _HASHED.fullmatch(path.name))
