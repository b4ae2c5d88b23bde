"""Clients of AWS for handlers that work there: boto3, loaded when it is used, with bounded calls.

    aws: {region: eu-west-1}

On target aws the function's own role counts, and its region where `region` is missing. Elsewhere `credentials_file`
names a file of AWS's own format, or `role_arn` a role that is taken with the token in `token_file`, by default the one
that EKS mounts for an annotated ServiceAccount. `endpoint` points at another implementation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.bundled.options import Options
from port_webhook_handlers.sdk import SettingError

_TOKEN_FILE: Final = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"  # noqa: S105 - a path


class AwsRefusedError(Exception):
    """AWS refused a call, or did not answer. The message is for the run's page.

    Attributes:
        code: AWS's word for it, such as `ServiceNotFoundException`; "" without an answer.
        passing: whether the same call may succeed later.
    """

    def __init__(self, message: str, *, code: str = "", passing: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.passing = passing


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """Where and as whom AWS is called.

    Attributes:
        region: None: the one in the environment.
        credentials_file: None: AWS's usual places.
        role_arn: taken with a token; None: no role is taken.
        token_file: holds that token, of OpenID Connect.
        endpoint: None: AWS itself.
    """

    region: str | None
    credentials_file: str | None
    role_arn: str | None
    token_file: str
    endpoint: str | None

    @classmethod
    def of(cls, options: Options) -> AwsAccess:
        """From settings; other keys are left to the caller."""
        return cls(
            region=options.text("region", "") or None,
            credentials_file=options.text("credentials_file", "") or None,
            role_arn=options.text("role_arn", "") or None,
            token_file=options.text("token_file", _TOKEN_FILE),
            endpoint=options.text("endpoint", "") or None,
        )

    @contextmanager
    def client(self, service: str) -> Iterator[Any]:
        """A client of a service; what it raises inside comes out as `AwsRefusedError`.

        Raises:
            AwsRefusedError: a call was refused, or not answered.
            SettingError: boto3 or a region is missing.
        """
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
            from botocore.session import Session
        except ImportError:
            raise SettingError(
                "the package boto3 is not installed where the listener runs; install it"
            ) from None
        region = self.region or os.environ.get("AWS_REGION")
        if region is None:
            raise SettingError("aws.region: is missing, and the environment names none; set it")
        session = Session()
        if self.credentials_file is not None:
            session.set_config_variable("credentials_file", self.credentials_file)
        config = Config(
            connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 3, "mode": "standard"}
        )

        def make(name: str, **credentials: Any) -> Any:
            return boto3.Session(botocore_session=session).client(
                name, region_name=region, endpoint_url=self.endpoint, **{"config": config, **credentials}
            )

        try:
            client = make(service, **({} if self.role_arn is None else self._taken(make, config)))
        except ValueError as error:
            raise SettingError(f"aws.endpoint: {error}; write a URL") from None
        except (ClientError, BotoCoreError) as error:
            raise refused(error) from None
        try:
            yield client
        except (ClientError, BotoCoreError) as error:
            raise refused(error) from None
        finally:
            client.close()

    def _taken(self, make: Callable[..., Any], config: Any) -> dict[str, str]:
        """Credentials of the role; they outlive every handler."""
        from botocore import UNSIGNED
        from botocore.config import Config

        try:
            token = Path(self.token_file).read_text(encoding="ascii").strip()
        except OSError as error:
            raise SettingError(
                f"aws.token_file: {self.token_file} cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise SettingError(f"aws.token_file: {self.token_file} holds no token; correct it") from None
        sts = make("sts", config=config.merge(Config(signature_version=UNSIGNED)))
        try:
            found = sts.assume_role_with_web_identity(
                RoleArn=self.role_arn, RoleSessionName="port-webhook", WebIdentityToken=token
            )["Credentials"]
        finally:
            sts.close()
        return {
            "aws_access_key_id": found["AccessKeyId"],
            "aws_secret_access_key": found["SecretAccessKey"],
            "aws_session_token": found["SessionToken"],
        }


def refused(error: Exception) -> AwsRefusedError:
    """What an error of boto3 means; one that is none of it is raised again."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    if isinstance(error, BotoCoreError):
        # The others are about what is asked, or as whom: they do not pass by themselves.
        unanswered = isinstance(error, ConnectionError | HTTPClientError)
        return AwsRefusedError(f"AWS cannot be used: {error}", passing=unanswered)
    if not isinstance(error, ClientError):
        raise error
    said = error.response.get("Error", {})
    code = str(said.get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return AwsRefusedError(
        f"AWS refused {error.operation_name}: {code}: {said.get('Message')}",
        code=code,
        passing=status >= 500 or "Throttl" in code,
    )
