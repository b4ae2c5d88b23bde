"""Calls to AWS with the standard library: JSON services and Lambda's Invoke."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

from port_webhook_handlers.runtime.aws.sigv4 import Credentials, signed_headers

# Service: target prefix and version of the JSON protocol.
_PROTOCOLS: Final = {
    "dynamodb": ("DynamoDB_20120810", "1.0"),
    "secretsmanager": ("secretsmanager", "1.1"),
    "sqs": ("AmazonSQS", "1.0"),
}
_ATTEMPTS: Final = 3
_SECONDS: Final = 5.0
_PASSING: Final = frozenset(
    {
        "InternalServerError",
        "InternalServiceError",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "ServiceUnavailable",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)


class AwsError(Exception):
    """A call to AWS that failed.

    Attributes:
        code: AWS's name of the error, such as `ConditionalCheckFailedException`; "" if there was no answer.
        ambiguous: it may have taken effect nevertheless.
    """

    def __init__(self, message: str, code: str = "", *, ambiguous: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.ambiguous = ambiguous


class AwsApi:
    """Signs, sends and repeats calls; keeps one connection for each host.

    Args:
        region: of all services.
        credentials: read before each call, because they may be renewed.
        environment: `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_<SERVICE>` replace the endpoints of AWS.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        region: str,
        credentials: Callable[[], Credentials],
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._region = region
        self._credentials = credentials
        self._environment = environment
        self._clock = clock
        self._connections: dict[str, http.client.HTTPConnection] = {}

    @classmethod
    def from_environment(cls) -> AwsApi:
        """The caller that Lambda's environment names."""
        return cls(os.environ["AWS_REGION"], environment_credentials)

    def call(self, service: str, operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Calls an operation of DynamoDB, Secrets Manager or SQS.

        Raises:
            AwsError: it failed, after attempts.
        """
        prefix, version = _PROTOCOLS[service]
        headers = {
            "content-type": f"application/x-amz-json-{version}",
            "x-amz-target": f"{prefix}.{operation}",
        }
        data = json.dumps(body, separators=(",", ":")).encode()
        status, answer, _ = self._send(service, operation, "/", headers, data, _SECONDS, _ATTEMPTS)
        parsed: dict[str, Any] = json.loads(answer) if answer else {}
        if status != 200:
            raise _error(service, operation, status, parsed)
        return parsed

    def invoke(self, function: str, payload: bytes, seconds: float) -> bytes:
        """Invokes a Lambda function once and waits for its answer.

        Args:
            function: name or ARN.
            payload: its event, JSON.
            seconds: how long it may take.

        Raises:
            AwsError: it could not be invoked, or ended with an error.
        """
        path = f"/2015-03-31/functions/{quote(function, safe='')}/invocations"
        headers = {"content-type": "application/json"}
        status, answer, failed = self._send("lambda", "Invoke", path, headers, payload, seconds, 1)
        if status != 200:
            raise _error("lambda", "Invoke", status, _object(answer))
        if failed:
            raise AwsError(
                f"function {function} ended with an error ({failed})", "FunctionError", ambiguous=True
            )
        return answer

    def _send(
        self,
        service: str,
        operation: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        seconds: float,
        attempts: int,
    ) -> tuple[int, bytes, str]:
        """Status, body and Lambda's error header of an answer."""
        endpoint = self._endpoint(service)
        parts = urlsplit(endpoint)
        ambiguous = False
        failure = ""
        for attempt in range(1, attempts + 1):
            sent = signed_headers(
                self._credentials(),
                self._region,
                service,
                "POST",
                parts.netloc,
                path,
                headers,
                body,
                self._clock(),
            )
            sent["content-length"] = str(len(body))
            try:
                response = self._exchange(endpoint, path, sent, body, seconds)
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                self._forget(endpoint)
                ambiguous, failure = True, f"{type(error).__name__}: {error}"
            else:
                passing = response.status >= 500 or _code(_object(answer)) in _PASSING
                if not passing or attempt == attempts:
                    return response.status, answer, response.headers.get("x-amz-function-error") or ""
            if attempt < attempts:
                # Spread, so that callers who failed together do not return together.
                time.sleep(os.urandom(1)[0] / 255 * 0.1 * 2**attempt)
        raise AwsError(f"{service} {operation}: no answer ({failure})", ambiguous=ambiguous)

    def _exchange(
        self, endpoint: str, path: str, headers: Mapping[str, str], body: bytes, seconds: float
    ) -> http.client.HTTPResponse:
        kept = self._connections.get(endpoint)
        if kept is not None:
            try:
                return _request(kept, path, headers, body, seconds)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # The other side gave up an idle connection, perhaps while this environment was frozen.
                self._forget(endpoint)
        parts = urlsplit(endpoint)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = self._connections[endpoint] = kind(str(parts.hostname), parts.port, timeout=seconds)
        return _request(connection, path, headers, body, seconds)

    def _forget(self, endpoint: str) -> None:
        if (connection := self._connections.pop(endpoint, None)) is not None:
            connection.close()

    def close(self) -> None:
        """Closes the connections."""
        for endpoint in list(self._connections):
            self._forget(endpoint)

    def _endpoint(self, service: str) -> str:
        replaced = self._environment.get(f"AWS_ENDPOINT_URL_{service.upper()}") or self._environment.get(
            "AWS_ENDPOINT_URL"
        )
        if replaced:
            return replaced.rstrip("/")
        domain = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
        return f"https://{service}.{self._region}.{domain}"


def environment_credentials() -> Credentials:
    """Credentials as Lambda puts them into the environment."""
    return Credentials(
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
        os.environ.get("AWS_SESSION_TOKEN"),
    )


def _request(
    connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str], body: bytes, seconds: float
) -> http.client.HTTPResponse:
    connection.timeout = seconds
    if connection.sock is not None:
        connection.sock.settimeout(seconds)
    connection.request("POST", path, body, dict(headers))
    return connection.getresponse()


def _object(answer: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(answer)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _code(body: Mapping[str, Any]) -> str:
    name = str(body.get("__type") or body.get("Type") or body.get("code") or "")
    return name.rpartition("#")[2].partition(":")[0]


def _error(service: str, operation: str, status: int, body: Mapping[str, Any]) -> AwsError:
    code = _code(body)
    message = str(body.get("message") or body.get("Message") or "")
    return AwsError(f"{service} {operation}: {status} {code} {message}".rstrip(), code)
