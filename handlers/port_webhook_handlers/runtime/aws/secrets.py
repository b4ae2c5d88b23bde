"""Values from Secrets Manager, kept for a while."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.redact import Redactor
from port_webhook_handlers.runtime.secret_file import SecretFileError, SigningSecret, StoredSecrets

UNTIL: Final = "until-"
"""Begins the label of a former version that says when it ends: `until-<seconds since the epoch>`."""

# A sender without a valid signature must not be able to run up a bill.
_REFETCH_SECONDS: Final = 10.0


class CachedSecrets:
    """The content of one or more secrets, put together.

    A fetch that fails leaves the last good content in force. After a rotation the former signing secrets and
    decryption keys, which Secrets Manager keeps as the previous version, stay valid for a while.

    Args:
        api: calls to AWS.
        arns: by what they hold; those of `wanted` are read.
        wanted: which of them this function may read.
        seconds: how long a value is kept.
        log: gets the values to hide.
        overlap_seconds: how long former ones stay valid, unless a label of their version says until when.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        api: AwsApi,
        arns: Mapping[str, str],
        wanted: tuple[str, ...],
        seconds: float,
        log: Log,
        overlap_seconds: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._arns = [arns[name] for name in wanted if name in arns]
        self._seconds = seconds
        self._log = log
        self._overlap = overlap_seconds
        self._clock = clock
        self._fetched = 0.0
        self._refreshed = float("-inf")
        # Only who signs with a former secret makes it worth a call.
        self._wants_former = False
        self._content: StoredSecrets | None = None

    @property
    def content(self) -> StoredSecrets:
        """The content now.

        Raises:
            AwsError: it was never read and cannot be read.
            SecretFileError: it is not what the components write.
        """
        if self._content is None:
            return self._fetch()
        if self._clock() - self._fetched >= self._seconds:
            self._try_fetch()
        return self._content

    def signing(self, now: float) -> list[bytes]:
        """The signing secrets in force at `now` (seconds since the epoch)."""
        return [value.encode() for value in self.content.active_signing(now)]

    def refresh(self) -> bool:
        """Reads them again, unless that was done a moment ago; whether they changed."""
        if self._clock() - self._refreshed < _REFETCH_SECONDS:
            return False
        self._refreshed = self._clock()
        self._wants_former = self._overlap > 0
        before = self._content
        self._try_fetch()
        return self._content != before

    def _try_fetch(self) -> None:
        try:
            self._fetch()
        except (AwsError, SecretFileError) as error:
            self._fetched = self._clock()
            self._log("secrets not read", error=str(error))

    def _fetch(self) -> StoredSecrets:
        merged: dict[str, object] = {}
        former = StoredSecrets()
        for arn in self._arns:
            value = self._api.call("secretsmanager", "GetSecretValue", {"SecretId": arn})
            merged.update(_parsed(arn, value))
            if self._wants_former:
                found = self._former(arn, float(value.get("CreatedDate") or 0) + self._overlap)
                former = StoredSecrets(
                    former.signing + found.signing, None, former.decryption + found.decryption
                )
        content = StoredSecrets.from_json(merged)
        known = {item.value for item in content.signing}
        content = dataclasses.replace(
            content,
            signing=(*content.signing, *(item for item in former.signing if item.value not in known)),
            decryption=(
                *content.decryption,
                *(key for key in former.decryption if key not in content.decryption),
            ),
        )
        self._content, self._fetched = content, self._clock()
        api = () if content.api is None else (content.api.client_secret,)
        self._log.redact = Redactor(
            (*(item.value for item in content.signing), *api, *content.decryption, *content.secrets.values())
        )
        return content

    def _former(self, arn: str, until: float) -> StoredSecrets:
        """Signing secrets and decryption keys of the version before, as long as they count.

        Args:
            arn: of the secret.
            until: when they end (seconds since the epoch), unless a label says otherwise.
        """
        try:
            value = self._api.call(
                "secretsmanager", "GetSecretValue", {"SecretId": arn, "VersionStage": "AWSPREVIOUS"}
            )
        except AwsError as error:
            if error.code != "ResourceNotFoundException":
                self._log("former secret not read", error=str(error))
            return StoredSecrets()
        until = _labelled(value, until)
        if until <= time.time():
            return StoredSecrets()
        former = StoredSecrets.from_json(_parsed(arn, value))
        signing = tuple(
            SigningSecret(item.value, until if item.not_after is None else min(until, item.not_after))
            for item in former.signing
        )
        return StoredSecrets(signing, None, former.decryption)


def _labelled(value: Mapping[str, Any], otherwise: float) -> float:
    for label in value.get("VersionStages") or ():
        digits = str(label).removeprefix(UNTIL)
        if digits != label and digits.isdecimal():
            return float(digits)
    return otherwise


def _parsed(arn: str, value: Mapping[str, object]) -> dict[str, object]:
    try:
        parsed = json.loads(str(value["SecretString"]))
        if isinstance(parsed, dict):
            return parsed
    except (KeyError, ValueError):
        pass
    raise SecretFileError(f"secret {arn}: is not what the stack wrote; deploy it again")
