"""The HTTP client of Port's REST API.

    PortError
    ├── PortUnreachableError           no answer, or the caller cancelled
    └── PortApiError                   Port answered with an error
        ├── PortAuthenticationError    401
        ├── PortNotFoundError          404
        ├── PortConflictError          409
        ├── PortValidationError        422
        └── PortRateLimitError         429, after the last attempt

`requests` is imported at the first call, so that importing this module costs nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

BaseUrl = str | Callable[[], str]

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "PATCH"})
_RETRY_STATUS = frozenset({429, 500, 502, 503, 504})
# Port refused these before it looked at the request, so that repeating even a POST is safe.
_UNPROCESSED_STATUS = frozenset({429, 503})
_TOKEN_PATH = "/v1/auth/access_token"  # noqa: S105
_TOKEN_MARGIN_SECONDS = 30.0
_MAX_DELAY_SECONDS = 120.0
_MAX_ERROR_CHARACTERS = 500
# x-ratelimit-reset is a delay in some of Port's replies and epoch seconds in others.
_EPOCH_THRESHOLD = 1e9


class PortError(Exception):
    """Any failure of a call to Port. The text never holds a credential."""


class PortUnreachableError(PortError):
    """Port did not answer, or the wait for it was cancelled.

    `ambiguous` tells whether the request may have taken effect nevertheless.
    """

    def __init__(self, message: str, *, ambiguous: bool = False) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous


class PortApiError(PortError):
    """Port answered with an error.

    Attributes:
        status: HTTP status.
        code: Port's error code in snake case, such as `identifier_taken`; "" if the reply had none.
        message: Port's text.
        details: Port's details, {} if the reply had none.
        trace_id: what Port's support asks for; "" if the reply had none.
        after_retry: whether an earlier attempt of the same call may have taken effect. A create that ends in
            `identifier_taken` is then perhaps its own.
        retry_after: seconds that Port asks to wait; None if it does not, or the call was repeated already.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        trace_id: str = "",
        *,
        request: str = "",
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.details: Mapping[str, Any] = details or {}
        self.trace_id = trace_id
        self.after_retry = False
        self.retry_after: float | None = None
        super().__init__(self._text(request))

    @property
    def field(self) -> str:
        """The dotted path of the field that Port complains about, "" if it names none."""
        return _field_of(self.message, self.details)

    def _text(self, request: str) -> str:
        parts = [f"Port answered {self.status}"]
        if self.code:
            parts.append(f" {self.code}")
        if request:
            parts.append(f" to {request}")
        if self.message:
            parts.append(f": {self.message}")
        if self.field and self.field not in self.message:
            parts.append(f" (field {self.field})")
        if self.trace_id:
            parts.append(f" [trace {self.trace_id}]")
        return "".join(parts)


class PortAuthenticationError(PortApiError):
    """401: the credentials are wrong, or are those of another region."""


class PortNotFoundError(PortApiError):
    """404: the object does not exist."""


class PortConflictError(PortApiError):
    """409: the identifier is taken."""


class PortValidationError(PortApiError):
    """422: Port refuses the body; `field` names the place where Port says so."""


class PortRateLimitError(PortApiError):
    """429 on every attempt."""


_ERRORS: Mapping[int, type[PortApiError]] = {
    401: PortAuthenticationError,
    404: PortNotFoundError,
    409: PortConflictError,
    422: PortValidationError,
    429: PortRateLimitError,
}


class PortClient:
    """Calls Port's API; one instance may be shared by threads.

    A token is fetched at the first call and kept until shortly before it expires; a 401 refreshes it once.
    Rate limits, server errors and lost connections are repeated with full jitter, honouring what Port says
    about the time to wait. Unless told otherwise, a POST is repeated only where Port cannot have acted on it.

    Args:
        base_url: address of Port's API without `/v1`, or a function that gives it, which is asked again after
            every failure to connect.
        client_id: Port's client id.
        client_secret: Port's client secret.
        attempts: how often a call is tried at most.
        timeout: seconds to connect, and seconds without a byte from Port.
        concurrency: calls in flight at most; further ones wait.
        backoff: seconds of the first delay's upper bound; it doubles with each attempt.
        cancelled: once set, waits end with `PortUnreachableError` and no call starts.
        user_agent: sent with every call.
    """

    def __init__(
        self,
        base_url: BaseUrl,
        client_id: str,
        client_secret: str,
        *,
        attempts: int = 6,
        timeout: tuple[float, float] = (10.0, 30.0),
        concurrency: int = 16,
        backoff: float = 0.5,
        cancelled: threading.Event | None = None,
        user_agent: str = "port-webhook-stack",
    ) -> None:
        self._base_url = base_url
        self._url = ""
        self._client_id = client_id
        self._client_secret = client_secret
        self._attempts = attempts
        self._timeout = timeout
        self._concurrency = concurrency
        self._backoff = backoff
        self._cancelled = cancelled or threading.Event()
        self._user_agent = user_agent
        self._slots = threading.BoundedSemaphore(concurrency)
        self._session: requests.Session | None = None
        self._session_lock = threading.Lock()
        self._token_lock = threading.Lock()
        self._token = ""
        self._token_expires = 0.0

    def __repr__(self) -> str:
        return f"PortClient({self.base_url!r}, client_id={self._client_id!r})"

    def __enter__(self) -> PortClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """Where Port's API is now, without a trailing slash."""
        url = self._url
        if not url:
            url = self._base_url if isinstance(self._base_url, str) else self._base_url()
            self._url = url = url.rstrip("/")
        return url

    def close(self) -> None:
        """Close idle connections; a later call opens new ones."""
        with self._session_lock:
            if self._session is not None:
                self._session.close()
                self._session = None

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        attempts: int | None = None,
        repeatable: bool | None = None,
    ) -> dict[str, Any]:
        """Call `method path` and return Port's reply, {} for an empty one.

        Args:
            method: HTTP method.
            path: from `/v1/` on, identifiers percent-encoded (`quote` of this module).
            params: query parameters.
            json: body.
            headers: further headers.
            attempts: overrides the client's; 1 makes exactly one attempt, not even a second one after a 401
                (the next call then fetches a new token).
            repeatable: whether the call may be repeated after it perhaps took effect. By default all methods
                but POST are.

        Raises:
            PortApiError: Port answered with an error; see the subclasses.
            PortUnreachableError: no answer, or cancelled.
        """
        method = method.upper()
        limit = max(1, self._attempts if attempts is None else attempts)
        safe = method in _IDEMPOTENT if repeatable is None else repeatable
        refreshed = False
        ambiguous = False
        attempt = 0
        while True:
            attempt += 1
            delay: float | None = None
            token = ""
            repeat = True
            try:
                token = self._bearer()
                return self._send(method, path, params=params, json=json, headers=headers, token=token)
            except PortAuthenticationError:
                self._forget(token)
                if not token or refreshed or limit == 1:
                    raise
                refreshed = True
                attempt -= 1
                continue
            except _RetryableStatusError as failure:
                error: PortError = failure.error
                delay = failure.delay
                if token and failure.error.status not in _UNPROCESSED_STATUS:
                    repeat = safe
                    ambiguous = True
            except PortUnreachableError as failure:
                self._url = ""
                error = failure
                # Without a token only the login failed, and that is always safe to repeat.
                if token and failure.ambiguous:
                    repeat = safe
                    ambiguous = True
            except PortApiError as failure:
                failure.after_retry = ambiguous
                raise
            if not repeat or attempt >= limit:
                raise error from None
            self._wait(self._jitter(attempt) if delay is None else delay + random.uniform(0, 0.25), error)  # noqa: S311

    def check_credentials(self) -> None:
        """Fetch a token unless there is one.

        Raises:
            PortAuthenticationError: Port refuses the credentials.
            PortUnreachableError: no answer.
        """
        for attempt in range(1, self._attempts + 1):
            try:
                self._bearer()
            except (_RetryableStatusError, PortUnreachableError) as failure:
                error = failure.error if isinstance(failure, _RetryableStatusError) else failure
                if attempt == self._attempts:
                    raise error from None
                self._wait(self._jitter(attempt), error)
            else:
                return

    def _bearer(self) -> str:
        # The lock is held over the request: whoever comes meanwhile waits for this token instead of its own.
        with self._token_lock:
            if self._token and time.monotonic() < self._token_expires:
                return self._token
            reply = self._send(
                "POST",
                _TOKEN_PATH,
                json={"clientId": self._client_id, "clientSecret": self._client_secret},
                token="",
            )
            token = reply.get("accessToken")
            if not isinstance(token, str) or not token:
                raise PortError(f"{self.base_url} answered the login without a token: is this Port's API?")
            lifetime = reply.get("expiresIn")
            seconds = float(lifetime) if isinstance(lifetime, int | float) else 0.0
            # Port hands out the same token until it expires, so the rest of its life can be very short.
            margin = min(_TOKEN_MARGIN_SECONDS, seconds / 2)
            self._token = token
            self._token_expires = time.monotonic() + seconds - margin
            return token

    def _forget(self, token: str) -> None:
        with self._token_lock:
            if self._token == token:
                self._token = ""

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        token: str,
    ) -> dict[str, Any]:
        import requests

        base_url = self.base_url
        where = f"{method} {path}"
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        self._acquire_slot(where)
        try:
            response = self._open_session().request(
                method,
                base_url + path,
                params=dict(params) if params else None,
                json=json,
                headers=sent,
                timeout=self._timeout,
                # A redirect would carry the credentials to an address that nobody configured.
                allow_redirects=False,
            )
        except requests.exceptions.ConnectTimeout:
            raise PortUnreachableError(
                f"{base_url} did not accept a connection in {self._timeout[0]:g} s"
            ) from None
        except requests.exceptions.Timeout:
            raise PortUnreachableError(
                f"{base_url} did not answer {where} in {self._timeout[1]:g} s", ambiguous=True
            ) from None
        except requests.exceptions.RequestException as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise PortError(
                    f"the certificate of {base_url} is not trusted: {_reason(error)}; "
                    "set REQUESTS_CA_BUNDLE to the file of your certificate authority"
                ) from None
            raise PortUnreachableError(
                f"{base_url} cannot be reached for {where}: {_reason(error)}",
                ambiguous=not _never_sent(error),
            ) from None
        finally:
            self._slots.release()
        return self._reply(response, where)

    def _reply(self, response: requests.Response, where: str) -> dict[str, Any]:
        try:
            body = response.json() if response.content else {}
        except ValueError:
            body = None
        if response.status_code < 300 and isinstance(body, dict) and body.get("ok", True) is True:
            return body
        if response.status_code < 300 and not isinstance(body, dict):
            raise PortError(
                f"{response.url.split('?')[0]} did not answer {where} with a JSON object: is this Port's API?"
            )
        reply = body if isinstance(body, dict) else {}
        error = error_of(
            response.status_code,
            reply or {"message": response.reason},
            response.headers.get("X-Trace-Id", ""),
            where,
            (self._client_secret, self._token),
        )
        if response.status_code in _RETRY_STATUS:
            raise _RetryableStatusError(error, requested_delay(response.headers))
        raise error

    def _open_session(self) -> requests.Session:
        with self._session_lock:
            if self._session is None:
                import requests
                from requests.adapters import HTTPAdapter

                session = requests.Session()
                # Credentials come from the configuration, never from ~/.netrc.
                session.auth = _leave_as_is
                # A proxy of the environment cannot reach this machine's loopback.
                session.trust_env = not _is_loopback(self.base_url)
                session.headers["User-Agent"] = self._user_agent
                adapter = HTTPAdapter(pool_connections=4, pool_maxsize=self._concurrency)
                session.mount("https://", adapter)
                session.mount("http://", adapter)
                self._session = session
            return self._session

    def _acquire_slot(self, where: str) -> None:
        while not self._cancelled.is_set():
            if self._slots.acquire(timeout=0.2):
                return
        raise PortUnreachableError(f"cancelled before {where}")

    def _jitter(self, attempt: int) -> float:
        return random.uniform(0, min(_MAX_DELAY_SECONDS, self._backoff * 2 ** (attempt - 1)))  # noqa: S311

    def _wait(self, seconds: float, error: PortError) -> None:
        if self._cancelled.wait(seconds):
            raise PortUnreachableError(f"cancelled while waiting to try again after: {error}") from None


class _RetryableStatusError(PortError):
    """Carries the error and the delay that Port asked for (None: it did not) to the retry loop."""

    def __init__(self, error: PortApiError, delay: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.delay = delay


def error_of(
    status: int, reply: Mapping[str, Any], trace_id: str, request: str, secrets: Sequence[str]
) -> PortApiError:
    """The error that a reply of Port is.

    Args:
        status: HTTP status.
        reply: Port's JSON.
        trace_id: Port's header `x-trace-id`, "" if there is none.
        request: method and path.
        secrets: what its text must not show; "" counts for nothing.
    """
    message = str(reply.get("message") or "")
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    details = reply.get("details")
    return _ERRORS.get(status, PortApiError)(
        status,
        str(reply.get("error") or ""),
        message[:_MAX_ERROR_CHARACTERS],
        details if isinstance(details, dict) else None,
        trace_id,
        request=request,
    )


def quote(identifier: str) -> str:
    """`identifier` as one segment of a path."""
    from urllib.parse import quote as percent_encode

    return percent_encode(identifier, safe="")


def _leave_as_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _is_loopback(url: str) -> bool:
    from urllib.parse import urlsplit

    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def requested_delay(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply of Port asks to wait; None if it does not say."""
    retry_after = _seconds(headers.get("Retry-After"))
    if retry_after is not None:
        return retry_after
    if headers.get("x-ratelimit-remaining", "").strip() not in {"", "0"}:
        return None
    return _seconds(headers.get("x-ratelimit-reset"))


def _seconds(value: str | None) -> float | None:
    """Seconds to wait from a header that holds a delay, epoch seconds or an HTTP date; clamped."""
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            number = parsedate_to_datetime(value).timestamp()
        except ValueError:
            return None
    if not 0 <= number < float("inf"):
        return None
    if number > _EPOCH_THRESHOLD:
        number -= time.time()
    return min(max(number, 0.0), _MAX_DELAY_SECONDS)


def _never_sent(error: Exception) -> bool:
    """Whether the connection failed before the request was on its way."""
    from requests.exceptions import ConnectionError as RequestsConnectionError
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    if not isinstance(error, RequestsConnectionError) or not error.args:
        return False
    cause = error.args[0]
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


def _reason(error: Exception) -> str:
    """The innermost cause in one line: requests nests its own several levels deep."""
    cause: BaseException = error
    while True:
        inner = getattr(cause, "reason", None) or (cause.args[0] if cause.args else None)
        if not isinstance(inner, BaseException):
            break
        cause = inner
    text = str(cause.args[-1] if cause.args else cause)
    return " ".join(text.split())[:_MAX_ERROR_CHARACTERS] or type(cause).__name__


def _field_of(message: str, details: Mapping[str, Any]) -> str:
    import re

    for key in ("path", "instancePath", "field", "property"):
        value = details.get(key)
        if isinstance(value, str) and value:
            return value.strip("/").replace("/", ".")
    errors = details.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        return _field_of(message, errors[0])
    found = re.search(r"\b(?:body|querystring|params)((?:[/.][\w@=:$-]+)+)", message)
    return found.group(1).strip("/.").replace("/", ".") if found else ""
