"""The provider's plugin process: one gRPC server for custom resources and components.

The engine starts `pulumi-resource-port-webhook`, reads a port from its standard output and calls it. Handlers
run in a thread pool of our own, so that a slow call to Port never blocks another one. The servicer builds on the
generated protocol instead of the SDK's experimental provider, which turns errors into tracebacks, integers into
floats and unknown values into plain strings.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from google.protobuf import any_pb2, empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import (
    engine_pb2,
    engine_pb2_grpc,
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)

from port_webhook_handlers.port.client import PortAuthenticationError, PortError
from port_webhook_stack.port.components import COMPONENTS
from port_webhook_stack.port.handler import (
    CheckResult,
    Context,
    Diff,
    Kind,
    PartialFailure,
    Properties,
    ProviderError,
    ResourceHandler,
)
from port_webhook_stack.port.provider import Provider, handler, package_schema, version
from port_webhook_stack.port.wire import Secrets, UnsupportedValueError, decode, encode

_THREADS = 32
_PARENT_CHECK_SECONDS = 1.0
_GRACE_SECONDS = 4.0
_PropertyDiff = provider_pb2.PropertyDiff
_KINDS = {
    (Kind.ADD, False): _PropertyDiff.ADD,
    (Kind.ADD, True): _PropertyDiff.ADD_REPLACE,
    (Kind.DELETE, False): _PropertyDiff.DELETE,
    (Kind.DELETE, True): _PropertyDiff.DELETE_REPLACE,
    (Kind.UPDATE, False): _PropertyDiff.UPDATE,
    (Kind.UPDATE, True): _PropertyDiff.UPDATE_REPLACE,
}

Result = TypeVar("Result")


class EngineLog:
    """Lines in the engine's output. A lost line never fails an operation."""

    def __init__(self, engine: engine_pb2_grpc.EngineStub | None, urn: str = "") -> None:
        self._engine = engine
        self._urn = urn

    def debug(self, message: str) -> None:
        self._send(engine_pb2.DEBUG, message)

    def info(self, message: str) -> None:
        self._send(engine_pb2.INFO, message)

    def warning(self, message: str) -> None:
        self._send(engine_pb2.WARNING, message)

    def _send(self, severity: Any, message: str) -> None:
        if self._engine is None:
            return
        try:
            self._engine.Log(
                engine_pb2.LogRequest(severity=severity, message=message, urn=self._urn), timeout=5
            )
        except grpc.RpcError:
            pass


class Servicer(provider_pb2_grpc.ResourceProviderServicer):
    """Implements Pulumi's provider protocol; see `provider.proto` for the meaning of the calls."""

    def __init__(self, provider: Provider, engine_address: str = "") -> None:
        self._provider = provider
        self._engine_address = engine_address
        self._engine: engine_pb2_grpc.EngineStub | None = None
        self._channel: grpc.Channel | None = None
        if engine_address:
            self._channel = grpc.insecure_channel(engine_address, options=_GRPC_CHANNEL_OPTIONS)
            self._engine = engine_pb2_grpc.EngineStub(self._channel)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="provider")
        self._components: Any = None

    def close(self) -> None:
        """End all waits and close connections."""
        self._provider.cancelled.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._provider.close()
        if self._channel is not None:
            self._channel.close()

    # The plugin itself.

    async def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return plugin_pb2.PluginInfo(version=version())

    async def Attach(self, request: Any, context: Any) -> Any:  # noqa: N802
        return empty_pb2.Empty()

    async def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._provider.cancelled.set()
        return empty_pb2.Empty()

    async def GetSchema(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            # Without any component the SDK has no schema to infer.
            components = json.loads(self._component_servicer().provider.schema) if COMPONENTS else {}
            return provider_pb2.GetSchemaResponse(schema=json.dumps(package_schema(components)))

        return await self._run(context, "", work, Secrets())

    # Configuration.

    async def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()

        def work() -> Any:
            news = decode(request.news, secrets)
            result = self._provider.check_config(request.urn, news, decode(request.olds))
            return _check_response(result, secrets.add_names({"clientSecret"}, result.inputs))

        return await self._run(context, request.urn, work, secrets)

    async def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            olds = decode(request.old_inputs if request.old_inputs.fields else request.olds)
            news = decode(request.news)
            response = _diff_response(self._provider.diff_config(olds, news), news)
            # With "some changes" the engine would update the provider even where it must be replaced.
            response.changes = provider_pb2.DiffResponse.DIFF_UNKNOWN
            return response

        return await self._run(context, request.urn, work, Secrets())

    async def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()

        def work() -> Any:
            self._provider.configure(decode(request.args, secrets))
            return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

        return await self._run(context, request.urn, work, secrets)

    # Custom resources.

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()

        def work() -> Any:
            kind, ctx = self._resource(request.urn)
            news = decode(request.news, secrets)
            secrets.add_names(kind.secrets, news)
            result = self._provider.check(ctx, _token(request.urn), news, decode(request.olds))
            return _check_response(result, secrets.add_names(kind.secrets, result.inputs))

        return await self._run(context, request.urn, work, secrets)

    async def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()

        def work() -> Any:
            kind, ctx = self._resource(request.urn)
            news = decode(request.news, secrets)
            return _diff_response(kind.diff(ctx, request.id, decode(request.olds, secrets), news), news)

        return await self._run(context, request.urn, work, secrets)

    async def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()

        def work() -> Any:
            kind, ctx = self._resource(request.urn)
            inputs = decode(request.properties, secrets)
            secrets.add_names(kind.secrets, inputs)
            result = kind.create(ctx, inputs, request.preview)
            secrets.add_names(kind.secrets, result.outputs)
            return provider_pb2.CreateResponse(id=result.id, properties=encode(result.outputs, secrets))

        return await self._run(context, request.urn, work, secrets)

    async def Read(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()

        def work() -> Any:
            kind, ctx = self._resource(request.urn)
            state, inputs = decode(request.properties, secrets), decode(request.inputs, secrets)
            result = kind.read(ctx, request.id, state, inputs)
            if result is None:
                return provider_pb2.ReadResponse(id="")
            secrets.add_names(kind.secrets, result.outputs)
            return provider_pb2.ReadResponse(
                id=result.id,
                properties=encode(result.outputs, secrets),
                inputs=encode(result.inputs, secrets),
            )

        return await self._run(context, request.urn, work, secrets)

    async def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()

        def work() -> Any:
            kind, ctx = self._resource(request.urn)
            olds, news = decode(request.olds), decode(request.news, secrets)
            secrets.add_names(kind.secrets, news)
            outputs = kind.update(ctx, request.id, olds, news, request.preview)
            secrets.add_names(kind.secrets, outputs)
            return provider_pb2.UpdateResponse(properties=encode(outputs, secrets))

        return await self._run(context, request.urn, work, secrets)

    async def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        secrets = Secrets()

        def work() -> Any:
            kind, ctx = self._resource(request.urn)
            kind.delete(ctx, request.id, decode(request.properties, secrets))
            return empty_pb2.Empty()

        return await self._run(context, request.urn, work, secrets)

    # Components.

    async def Construct(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._component_servicer().Construct(request, context)

    def _component_servicer(self) -> Any:
        if self._components is None:
            from pulumi.provider.experimental.component import ComponentProvider
            from pulumi.provider.server import ProviderServicer

            provider = ComponentProvider(list(COMPONENTS), "port-webhook", version=version())
            self._components = ProviderServicer(provider, [], self._engine_address)
        return self._components

    # Helpers.

    def _resource(self, urn: str) -> tuple[ResourceHandler, Context]:
        return handler(_token(urn)), self._provider.context(urn, EngineLog(self._engine, urn))

    async def _run(self, context: Any, urn: str, work: Callable[[], Result], secrets: Secrets) -> Result:
        """Run `work` in a thread; what goes wrong becomes one clean line in the engine's output."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except PartialFailure as failure:
            await context.abort_with_status(_partial_failure(failure, secrets, urn))
            raise
        except (ProviderError, PortError, UnsupportedValueError) as error:
            message = _explain(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the user gets a line, not a traceback
            EngineLog(self._engine, urn).debug(secrets.redact(traceback.format_exc()))
            message = (
                f"internal error of the provider: {type(error).__name__}: {error} "
                "(run with --debug for the traceback)"
            )
        # Codes other than Unknown and Internal tell the engine that the state is still the recorded one.
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, secrets.redact(message))
        raise AssertionError("abort always raises")


def _token(urn: str) -> str:
    return urn.split("::", 3)[2].rpartition("$")[2]


def _explain(error: Exception) -> str:
    if isinstance(error, PortAuthenticationError):
        return (
            f"{error}; check port-webhook:clientId, port-webhook:clientSecret and port-webhook:region, or "
            "PORT_CLIENT_ID, PORT_CLIENT_SECRET and PORT_REGION"
        )
    return str(error)


def _check_response(result: CheckResult, secrets: Secrets) -> Any:
    failures = [
        provider_pb2.CheckFailure(property=failure.property, reason=secrets.redact(failure.reason))
        for failure in result.failures
    ]
    return provider_pb2.CheckResponse(inputs=encode(result.inputs, secrets), failures=failures)


def _diff_response(diff: Diff, news: Properties) -> Any:
    replaces = set(diff.replaces)
    detailed = {
        path: _PropertyDiff(
            kind=_KINDS[kind, path in replaces], inputDiff=_top(path) in news or kind is Kind.DELETE
        )
        for path, kind in diff.changes.items()
    }
    response = provider_pb2.DiffResponse
    return response(
        changes=response.DIFF_SOME if diff.changes else response.DIFF_NONE,
        replaces=list(diff.replaces),
        diffs=sorted({_top(path) for path in diff.changes}),
        detailedDiff=detailed,
        hasDetailedDiff=True,
        deleteBeforeReplace=diff.delete_before_replace,
    )


def _top(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]


def _partial_failure(failure: PartialFailure, secrets: Secrets, urn: str) -> Any:
    names = handler(_token(urn)).secrets
    secrets.add_names(names, failure.outputs)
    detail = provider_pb2.ErrorResourceInitFailed(
        id=failure.id,
        properties=encode(failure.outputs, secrets),
        reasons=[secrets.redact(reason) for reason in failure.reasons],
        inputs=encode(failure.inputs, secrets) if failure.inputs is not None else None,
    )
    packed = any_pb2.Any()
    packed.Pack(detail)
    message = secrets.redact(str(failure))
    code = grpc.StatusCode.UNKNOWN
    status = grpc.Status()
    status.code = code
    status.details = message
    rich = status_pb2.Status(code=code.value[0], message=message, details=[packed])
    status.trailing_metadata = (("grpc-status-details-bin", rich.SerializeToString()),)
    return status


async def _serve(engine_address: str, parent: int) -> None:
    server = grpc.aio.server(options=_GRPC_CHANNEL_OPTIONS)
    servicer = Servicer(Provider(), engine_address)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    interrupted = asyncio.Event()
    # The engine starts plugins in a process group of their own and ends them with SIGINT when it is done; a
    # plugin that stayed would hold up every operation by the five seconds until it is killed.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    ends = [asyncio.ensure_future(_end_of(parent)), asyncio.ensure_future(interrupted.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if interrupted.is_set():
        await server.stop(grace=_GRACE_SECONDS)
    servicer.close()
    # A handler may still wait for Port; the engine that asked for it is gone.
    os._exit(0)


async def _end_of(parent: int) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells when it ends
        await asyncio.sleep(_PARENT_CHECK_SECONDS)


def main() -> None:
    """Entry point of `pulumi-resource-port-webhook`."""
    # Asked first of all: a parent that ends while the server starts would never be missed.
    parent = os.getppid()
    addresses = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    # The language host puts the plugin's folder before the address.
    asyncio.run(_serve(addresses[-1] if addresses else "", parent))


if __name__ == "__main__":
    main()
