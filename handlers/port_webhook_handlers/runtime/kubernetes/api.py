"""A small client for the API server, as a Pod's ServiceAccount: requests, and watches as streams of lines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"

_SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_TOKEN_SECONDS: Final = 30.0
_CONNECTIONS: Final = 64


class ApiServerError(Exception):
    """The API server refused a request, or could not be reached.

    Attributes:
        status: HTTP status; 0: no answer.
        reason: the API server's word for it, for example `AlreadyExists`.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        # A conflict that is none of names: somebody else changed the same object, or the quota, at that moment.
        return self.status in (0, 408, 429) or self.status >= 500 or self.reason == "Conflict"


class ApiServer:
    """The API server. Methods may be called from several threads.

    Args:
        url: base URL.
        folder: holds `token`, read again as it is rotated, and `ca.crt`.
        timeout: seconds for connecting, and for each read of an answer.
    """

    def __init__(self, url: str, folder: Path, timeout: float = 10.0) -> None:
        import urllib3

        self._url = url.rstrip("/")
        self._token_file = folder / "token"
        self._token = ""
        self._token_until = 0.0
        self._timeout = timeout
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=_CONNECTIONS, ca_certs=str(folder / "ca.crt"), cert_reqs="CERT_REQUIRED"
        )

    @classmethod
    def in_cluster(cls) -> ApiServer:
        """The API server of the cluster in which this Pod runs.

        Raises:
            ApiServerError: this process does not run in a Pod with a ServiceAccount's token.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
        folder = Path(os.environ.get("PORT_WEBHOOK_SERVICE_ACCOUNT", _SERVICE_ACCOUNT))
        if not host or not port or not (folder / "token").is_file():
            raise ApiServerError(0, "NotInCluster", "no ServiceAccount token is mounted; run this in a Pod")
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", folder)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        *,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> dict[str, Any]:
        """Sends one request and returns the answer's JSON.

        Raises:
            ApiServerError: it was refused, or there was no answer.
        """
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = {"Accept": accept, **({"Content-Type": content_type} if data is not None else {})}
        response = self._send(method, path, query, headers, data, preload=True)
        try:
            parsed = json.loads(response.data)
        except ValueError:
            parsed = {}
        if response.status >= 400:
            raise _refusal(response.status, parsed, method, path)
        return parsed if isinstance(parsed, dict) else {}

    def lines(
        self, path: str, query: Mapping[str, str], *, timeout: float, limit: int = 4 * 1024 * 1024
    ) -> Iterator[bytes]:
        """The lines of a streamed answer, until the API server ends it.

        Args:
            path, query: what to read.
            timeout: seconds without a byte after which the stream is given up.
            limit: longer lines are given up.

        Raises:
            ApiServerError: it was refused, broke off, or a line is too long.
        """
        import urllib3

        response = self._send("GET", path, query, {"Accept": "*/*"}, None, preload=False, timeout=timeout)
        try:
            if response.status >= 400:
                try:
                    parsed = json.loads(response.read())
                except ValueError:
                    parsed = {}
                raise _refusal(response.status, parsed, "GET", path)
            rest = b""
            while True:
                chunk = response.read1(65_536)
                if not chunk:
                    break
                *complete, rest = (rest + chunk).split(b"\n")
                yield from complete
                if len(rest) > limit:
                    raise ApiServerError(0, "LineTooLong", f"{path}: a line is longer than {limit} bytes")
            if rest:
                yield rest
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiServerError(
                0, "Broken", f"{path}: the stream broke off ({type(error).__name__})"
            ) from error
        finally:
            response.close()
            response.release_conn()

    def close(self) -> None:
        """Closes idle connections."""
        self._pool.clear()

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        headers: dict[str, str],
        data: bytes | None,
        *,
        preload: bool,
        timeout: float | None = None,
    ) -> BaseHTTPResponse:
        import urllib3

        url = f"{self._url}{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        try:
            return self._pool.request(
                method,
                url,
                body=data,
                headers={**headers, "Authorization": f"Bearer {self._bearer()}"},
                timeout=urllib3.Timeout(connect=self._timeout, read=timeout or self._timeout),
                # What may be repeated is known only to the caller.
                retries=False,
                preload_content=preload,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiServerError(
                0, "Unreachable", f"{method} {path}: the API server does not answer ({type(error).__name__})"
            ) from error

    def _bearer(self) -> str:
        if time.monotonic() >= self._token_until:
            self._token = self._token_file.read_text("ascii").strip()
            self._token_until = time.monotonic() + _TOKEN_SECONDS
        return self._token


def _refusal(status: int, body: Any, method: str, path: str) -> ApiServerError:
    known = body if isinstance(body, dict) else {}
    reason = str(known.get("reason") or status)
    return ApiServerError(status, reason, f"{method} {path}: {known.get('message') or reason} ({status})")
