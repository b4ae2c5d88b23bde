"""Deploys functions of AWS Lambda that exist already: new code, a version of it, and the alias that callers use.

Where a version's code comes from is one of three: an object of S3, a container image, or a version that a pipeline
has published already with the version as its description. `check` is a payload that the alias must answer without an
error once it has moved; else it moves back. Versions are found again by their description.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from port_webhook_handlers.bundled.aws import refused
from port_webhook_handlers.bundled.deploy.aws_deployer import AwsDeployer, look
from port_webhook_handlers.bundled.deploy.deployer import Deployment, DeploymentError, Report, ServiceState
from port_webhook_handlers.bundled.deploy.rollout import Watch
from port_webhook_handlers.bundled.deploy.settings import Place, service_options, with_version

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHOWN_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Function(Place):
    """One function.

    Attributes:
        name: of the function.
        alias: what callers use.
        bucket, key: where the code is; `{version}` is replaced in the key.
        image: template of a container image, in place of an object.
        published: the version was published already.
        check: payload that the alias must answer; None: it is not asked.
    """

    name: str
    alias: str
    bucket: str | None
    key: str | None
    image: str | None
    published: bool
    check: Mapping[str, Any] | None

    @classmethod
    def of(cls, settings: Mapping[str, Any], service: str) -> Function:
        """From the settings below `services`.

        Raises:
            SettingError: they cannot be used.
        """
        options = service_options(settings, service)
        check = options.mapping("check")
        found = cls(
            service=service,
            name=options.text("function", service),
            alias=options.text("alias", "live"),
            bucket=options.text("s3_bucket", "") or None,
            key=options.text("s3_key", "") or None,
            image=options.text("image", "") or None,
            published=options.flag("published"),
            check=check or None,
            url=options.text("url", "") or None,
        )
        options.end()
        for name, value in (("function", found.name), ("alias", found.alias)):
            if not _NAME.fullmatch(value):
                raise options.error(name, "must be a name of Lambda (no ARN): letters, digits, - and _")
        if bool(found.bucket) != bool(found.key):
            raise options.error("s3_key", "s3_bucket and s3_key belong together; give both or none")
        if sum(map(bool, (found.bucket, found.image, found.published))) != 1:
            raise options.error(
                "function",
                "give one of s3_bucket with s3_key, image, and published: where its code comes from",
            )
        for name, value in (("s3_key", found.key or "{version}"), ("image", found.image or "{version}")):
            if "{version}" not in value:
                raise options.error(name, "must hold {version}")
        return found

    def code(self, version: str) -> dict[str, str]:
        """How Lambda is told where a version's code is."""
        if self.image is not None:
            return {"ImageUri": with_version(self.image, version)}
        return {"S3Bucket": self.bucket or "", "S3Key": with_version(self.key or "", version)}


class LambdaDeployer(AwsDeployer):
    """Publishes versions and moves aliases; see `Deployer`."""

    def deploy(self, service: str, version: str, *, report: Report, timeout_seconds: float) -> Deployment:
        """See `Deployer.deploy`; the alias moves last, and back if its check fails."""
        target = Function.of(self._settings, service)
        watch = Watch(timeout_seconds, report)
        with self._client("lambda") as client:
            before = _alias(client, target)
            former = str(before["FunctionVersion"])
            replaced_version = _version_of(_configuration(client, target, former))
            if target.published:
                number = _published(client, target, version)
            else:
                report(f"{target.name}: code of {version}")
                number = _publish(client, target, version, watch, report)
            report(f"version {number} of {target.name} is {version}")
            watch.until_done(lambda: _not_ready(client, target, number, "State", "Active"))
            report(f"alias {target.alias}: {former} → {number}")
            _move(client, target, before, number)
            return Deployment(
                url=target.address(version),
                version=version,
                revision=number,
                replaced=former if former not in (number, "$LATEST") else None,
                replaced_version=replaced_version,
            )

    def scale(self, service: str, replicas: int, *, report: Report, timeout_seconds: float) -> ServiceState:
        """Always fails: Lambda runs as many copies as there are requests."""
        target = Function.of(self._settings, service)
        raise DeploymentError(
            f"function {target.name} cannot be scaled: Lambda runs as many copies as there are requests"
        )

    def restart(self, service: str, *, report: Report, timeout_seconds: float) -> ServiceState:
        """Always fails: a function has no process of its own; deploying a version replaces its copies."""
        target = Function.of(self._settings, service)
        raise DeploymentError(
            f"function {target.name} cannot be restarted: it has no process between requests; deploy a version"
        )

    def state(self, service: str) -> ServiceState | None:
        """See `Deployer.state`."""
        target = Function.of(self._settings, service)
        with self._client("lambda") as client:
            try:
                number = str(_alias(client, target)["FunctionVersion"])
            except _MissingError:
                return None
            version = _version_of(_configuration(client, target, number))
            return ServiceState(version, number, None, None, target.address(version))


class _MissingError(DeploymentError):
    """There is no such function or alias."""


def _alias(client: Any, target: Function) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = client.get_alias(FunctionName=target.name, Name=target.alias)
        return found
    except client.exceptions.ResourceNotFoundException as error:
        said = error.response.get("Error", {}).get("Message") or "not found"
        raise _MissingError(
            f"alias {target.alias} of function {target.name} does not exist ({said}); create function and alias "
            "once, this action only changes its code"
        ) from None


def _configuration(client: Any, target: Function, number: str | None) -> Mapping[str, Any]:
    which = {} if number is None else {"Qualifier": number}
    found: Mapping[str, Any] = client.get_function_configuration(FunctionName=target.name, **which)
    return found


def _version_of(configuration: Mapping[str, Any]) -> str:
    """What a version was published as; one that somebody else has published has only its number."""
    return str(configuration.get("Description") or configuration["Version"])


def _published(client: Any, target: Function, version: str) -> str:
    numbers = [
        item["Version"]
        for page in client.get_paginator("list_versions_by_function").paginate(FunctionName=target.name)
        for item in page["Versions"]
        if item.get("Description") == version and item["Version"] != "$LATEST"
    ]
    if not numbers:
        raise DeploymentError(
            f"no version of function {target.name} was published with the description {version}; publish it first"
        )
    return str(numbers[-1])


def _publish(client: Any, target: Function, version: str, watch: Watch, report: Report) -> str:
    updated = client.update_function_code(FunctionName=target.name, **target.code(version))
    watch.until_done(lambda: _not_ready(client, target, None, "LastUpdateStatus", "Successful"))
    # By its hash, so that code of another run that came in between is not published as this version.
    made = client.publish_version(
        FunctionName=target.name, CodeSha256=updated["CodeSha256"], Description=version
    )
    if (known := made.get("Description")) and known != version:
        report(f"the code of {version} is that of {known}: Lambda makes no second version of it")
    return str(made["Version"])


def _not_ready(client: Any, target: Function, number: str | None, key: str, wanted: str) -> str | None:
    found = look(lambda: _configuration(client, target, number))
    if found is None:
        return "AWS does not answer"
    state = found.get(key, wanted)
    if state == "Failed":
        raise DeploymentError(
            f"Lambda cannot use the code of {target.service}: {found.get(f'{key}Reason') or 'no reason given'}"
        )
    # A function that nobody called for long is put aside, and comes back with the first request.
    return None if state in (wanted, "Inactive") else f"{target.name} is {str(state).lower()}"


def _move(client: Any, target: Function, before: Mapping[str, Any], number: str) -> None:
    """Moves the alias, checks it, and moves it back if the check fails."""
    name = {"FunctionName": target.name, "Name": target.alias}
    former = before["FunctionVersion"]
    guard = {"RevisionId": before["RevisionId"]} if before.get("RevisionId") else {}
    # Callers get one version only, whatever was being shifted before.
    whole: dict[str, Any] = {"RoutingConfig": {"AdditionalVersionWeights": {}}}
    moved = client.update_alias(**name, **guard, **whole, FunctionVersion=number)
    problem = _checked(client, target)
    if problem is None:
        return
    guard = {"RevisionId": moved["RevisionId"]} if moved.get("RevisionId") else {}
    routing = before.get("RoutingConfig") or whole["RoutingConfig"]
    try:
        client.update_alias(**name, **guard, RoutingConfig=routing, FunctionVersion=former)
    except Exception as error:  # noqa: BLE001 - the message names both errors
        raise DeploymentError(
            f"{problem}. Alias {target.alias} could not be moved back to version {former}: {refused(error)}"
        ) from None
    raise DeploymentError(f"{problem}. Alias {target.alias} is back at version {former}")


def _checked(client: Any, target: Function) -> str | None:
    """What is wrong with the answer to the check."""
    if target.check is None:
        return None
    try:
        answer = client.invoke(
            FunctionName=target.name, Qualifier=target.alias, Payload=json.dumps(dict(target.check)).encode()
        )
        text = answer["Payload"].read().decode("utf-8", "replace")
    except Exception as error:  # noqa: BLE001 - whatever it is, the alias goes back
        return f"the check of {target.service} was not answered: {error}"
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    status = body.get("statusCode") if isinstance(body, dict) else None
    failed = isinstance(status, int) and not 200 <= status < 400
    if answer.get("FunctionError") or failed:
        return f"the check of {target.service} failed: {text[:_SHOWN_CHARACTERS]}"
    return None
