"""`pulumi-resource-aws`: the provider protocol for `aws:*` types, on moto.

Like the real provider it checks required inputs, leaves what is computed unknown at preview, replaces a resource only
where AWS cannot change it, and passes secrets on as secrets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2, struct_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc
from tests.aws.provider.kinds import ANY, KINDS, Cloud, Kind
from tests.provider_plugin import serve

from port_webhook_stack.port.handler import UNKNOWN, has_unknown
from port_webhook_stack.port.wire import Secrets, decode, encode

VERSION = "7.51.1"
_SIGNATURE = "4dabf18193072939515e22adb298388d"
_ARCHIVE = "0def7320c3a5731c473e5ecbe6d01bc7"
_SECRET_CONFIGURATION = {"accessKey", "secretKey", "token"}
_BOOLEANS = ("skipCredentialsValidation", "skipRequestingAccountId", "skipMetadataApiCheck")


def values_of(struct: Any, secrets: Secrets) -> dict[str, Any]:
    """Plain values; an archive is `{"path": …, "hash": …}`."""
    copy = struct_pb2.Struct()
    copy.CopyFrom(struct)
    _rename(copy, _SIGNATURE, "archive")
    return decode(copy, secrets)


def struct_of(values: Mapping[str, Any], secrets: Secrets) -> Any:
    made = encode(values, secrets)
    _rename(made, "archive", _SIGNATURE)
    return made


def _rename(struct: Any, old: str, new: str) -> None:
    for value in struct.fields.values():
        if value.WhichOneof("kind") != "struct_value":
            continue
        fields = value.struct_value.fields
        if old in fields and fields[old].string_value == _ARCHIVE:
            fields[new].string_value = _ARCHIVE
            del fields[old]
        _rename(value.struct_value, old, new)


def kind_of(urn: str) -> tuple[str, Kind]:
    token = urn.split("::", 3)[2].rpartition("$")[2]
    return token, KINDS.get(token, ANY)


class Servicer(provider_pb2_grpc.ResourceProviderServicer):
    """See `provider.proto`."""

    def __init__(self) -> None:
        self._cloud: Cloud | None = None

    @property
    def cloud(self) -> Cloud:
        assert self._cloud is not None, "Configure was not called"
        return self._cloud

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return plugin_pb2.PluginInfo(version=VERSION)

    def GetSchema(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.GetSchemaResponse(schema=json.dumps({"name": "aws", "version": VERSION}))

    def Attach(self, request: Any, context: Any) -> Any:  # noqa: N802
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return empty_pb2.Empty()

    def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()
        news = values_of(request.news, secrets).copy()
        failures = []
        if not news.get("region"):
            failures.append(provider_pb2.CheckFailure(property="region", reason="is missing"))
        if news.get("endpoints") and any(news.get(name) != "true" for name in _BOOLEANS):
            # What the real provider would do then is to ask STS and the metadata service.
            failures.append(
                provider_pb2.CheckFailure(property="endpoints", reason="needs the skip… flags beside it")
            )
        secrets.add_names(_SECRET_CONFIGURATION, news)
        return provider_pb2.CheckResponse(inputs=struct_of(news, secrets), failures=failures)

    def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        old, new = values_of(request.old_inputs, Secrets()), values_of(request.news, Secrets())
        moved = [name for name in ("region", "endpoints") if old.get(name) != new.get(name)]
        return provider_pb2.DiffResponse(replaces=moved)

    def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802
        args = values_of(request.args, Secrets())
        endpoints = json.loads(args.get("endpoints") or "[{}]")[0]
        self._cloud = Cloud(str(args["region"]), endpoints)
        return provider_pb2.ConfigureResponse(
            acceptSecrets=True, supportsPreview=True, acceptResources=False, acceptOutputs=False
        )

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()
        news = values_of(request.news, secrets)
        _, kind = kind_of(request.urn)
        failures = [
            provider_pb2.CheckFailure(property=name, reason=f'Missing required argument "{name}"')
            for name in kind.required
            if news.get(name) is None
        ]
        name = news.get("name")
        if isinstance(name, str) and len(name) > kind.longest:
            reason = f"{name} has {len(name)} characters, AWS takes {kind.longest}"
            failures.append(provider_pb2.CheckFailure(property="name", reason=reason))
        return provider_pb2.CheckResponse(inputs=struct_of(news, secrets), failures=failures)

    def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        _, kind = kind_of(request.urn)
        old = _comparable(values_of(request.old_inputs, Secrets()))
        new = _comparable(values_of(request.news, Secrets()))
        changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        response = provider_pb2.DiffResponse
        return response(
            changes=response.DIFF_SOME if changed else response.DIFF_NONE,
            diffs=changed,
            replaces=[name for name in changed if name in kind.replaces],
        )

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()
        given = values_of(request.properties, secrets)
        token, kind = kind_of(request.urn)
        if request.preview:
            outputs = {**given, **dict.fromkeys(kind.computed, UNKNOWN)}
            return provider_pb2.CreateResponse(id="", properties=struct_of(outputs, secrets))
        if has_unknown(given):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{token}: an input is unknown at creation")
        outputs = {**given, **self._attempt(context, token, lambda: kind.make(self.cloud, given))}
        return provider_pb2.CreateResponse(id=str(outputs.pop("id")), properties=struct_of(outputs, secrets))

    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()
        new = values_of(request.news, secrets)
        old = values_of(request.olds, Secrets())
        token, kind = kind_of(request.urn)
        kept = {name: value for name, value in old.items() if name in kind.computed}
        if not request.preview:
            before = {**old, "id": request.id}
            kept |= self._attempt(context, token, lambda: kind.change(self.cloud, before, new))
        return provider_pb2.UpdateResponse(properties=struct_of({**new, **kept}, secrets))

    def Read(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        old = {**values_of(request.properties, Secrets()), "id": request.id}
        token, kind = kind_of(request.urn)
        self._attempt(context, token, lambda: kind.remove(self.cloud, old))
        return empty_pb2.Empty()

    def _attempt(self, context: Any, token: str, work: Any) -> Any:
        try:
            return work()
        except Exception as error:  # what AWS refuses is the user's to read
            context.abort(grpc.StatusCode.UNKNOWN, f"{token}: {type(error).__name__}: {error}")
            raise


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of an archive its content counts, not where it lies."""
    return {
        name: {k: v for k, v in value.items() if k != "path"}
        if isinstance(value, dict) and "archive" in value
        else value
        for name, value in values.items()
        if value is not None
    }


if __name__ == "__main__":
    serve(Servicer(), 8)
