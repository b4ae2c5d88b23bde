"""The facade: secrets → listener → verification → definitions in Port, in that order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pulumi

from port_webhook_handlers.bundle import Bundle, BundleError, build
from port_webhook_handlers.port.names import resolve_urls, route_path
from port_webhook_handlers.port.payload import Payload
from port_webhook_handlers.port.regions import API_BASE_URLS
from port_webhook_stack.agent import stack as agents
from port_webhook_stack.agent.definitions import with_agent
from port_webhook_stack.definitions import by_identifier, check, gather, with_suffix
from port_webhook_stack.deployed import Deployed
from port_webhook_stack.errors import SettingsError, StackError
from port_webhook_stack.kubernetes.settings import is_pulled
from port_webhook_stack.listener.local import LocalListener
from port_webhook_stack.organisation import look_up
from port_webhook_stack.port.resources import (
    Action,
    ActionPermissions,
    Automation,
    Blueprint,
    Definition,
    Entity,
    LocalPort,
    Secret,
)
from port_webhook_stack.secrets_store.local import LocalSecretsStore
from port_webhook_stack.settings import MODULE, ROTATION_OVERLAP_SECONDS, Settings
from port_webhook_stack.verification import Verification


class _Keys(TypedDict):
    """The three uses of the organisation's client secret, which may be separate."""

    signing: list[dict[str, pulumi.Input[Any]]]
    api: Mapping[str, pulumi.Input[str]]
    decryption: list[pulumi.Input[str]]


_Target = Callable[["WebhookStack", Mapping[str, pulumi.Input[str]], _Keys], Deployed]


class WebhookStack(pulumi.ComponentResource):
    """A complete webhook backend for Port: one of these per environment.

    Every object in Port depends on the verified listener, so Port never points at something that does not verify.
    """

    url: pulumi.Output[str]
    """Base URL at which Port reaches the listener, without a trailing slash."""

    digest: str
    """Digest of the bundle of handlers."""

    definitions: Mapping[str, Mapping[str, Any]]
    """Bodies of all actions and automations by their identifier in Port, URLs still symbolic."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        blueprints: Sequence[Mapping[str, Any]] = (),
        entities: Sequence[Mapping[str, Any]] = (),
        definitions: Sequence[Definition] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name of the component, prefix of its children's.
            settings: the checked stack configuration.
            blueprints: bodies of the blueprints that handlers and definitions use; created or only checked,
                as `settings.blueprints` says. One that has a relation comes after the one it points at.
            entities: entities to create, each with its `blueprint`.
            definitions: actions and automations beside those of the handlers and of the files that
                `settings.definitions` names; Port's bodies, or typed. `route:NAME` as a URL means a route of the
                listener, `port-api:/v1/…` Port's own API.
            opts: options of the component.

        Raises:
            StackError: settings, handlers and definitions do not fit together. Nothing was registered yet.
        """
        bundle = _build(settings)
        _require_secrets(settings, bundle)
        target = _target(settings, bundle)
        bodies = _bodies(settings, bundle, blueprints, definitions)
        self.definitions = {body["identifier"]: body for body in bodies.values()}

        super().__init__("port-webhook:index:WebhookStack", name, {}, opts)
        self._name = name
        self._settings = settings
        local_port = LocalPort(f"{name}-port", opts=self._child()) if settings.is_local_port else None
        organisation = _organisation(settings, local_port)
        signing = _signing_secrets(settings, organisation)
        reporter = settings.api_credentials

        keys: _Keys = {
            "signing": signing,
            "api": {"clientId": reporter.client_id, "clientSecret": reporter.client_secret}
            if reporter
            else organisation,
            "decryption": _decryption_keys(settings, organisation),
        }
        deployed = (
            self._deploy_locally(bundle, keys, bodies, local_port)
            if target is None
            else target(self, organisation, keys)
        )
        self.digest = bundle.digest
        self.url = deployed.url
        self._bases = deployed.bases
        proof: list[pulumi.Resource] = [deployed.listener]
        if settings.verify == "http":
            proof = [
                Verification(
                    f"{name}-verification",
                    url=self.url,
                    digest=bundle.digest,
                    secrets_version=deployed.secrets_version,
                    signing_secret=signing[0]["value"],
                    settle_seconds=deployed.settle_seconds,
                    # The address alone may be there before everything behind it.
                    opts=self._child([deployed.listener]),
                )
            ]
        if settings.agent is not None and settings.agent.sink == "forward":
            proof.append(
                agents.beside_listener(
                    name, settings.agent, bodies, deployed, after=[*proof, *deployed.before], parent=self
                )
            )
        # What is stored in Port goes before the local Port that stores it.
        before = [local_port] if local_port else []
        catalogue = self._catalogue(blueprints, entities, before)
        port_secrets = [
            Secret(f"{name}-secret-{secret}", secret, value, opts=self._child(before))
            for secret, value in settings.port_secrets.items()
        ]
        self._actions(bodies, bundle.permissions, [*proof, *catalogue, *port_secrets, *before])
        self.register_outputs({"url": self.url, "digest": self.digest})

    def _deploy_locally(
        self,
        bundle: Bundle,
        keys: _Keys,
        bodies: Mapping[str, Mapping[str, Any]],
        local_port: LocalPort | None,
    ) -> Deployed:
        settings, agent = self._settings, self._settings.agent
        broker = agents.broker(self._name, agent, local_port=local_port, parent=self) if agent else None
        before = [broker] if broker else []
        store = LocalSecretsStore(
            f"{self._name}-secrets",
            signing=keys["signing"],
            api=keys["api"],
            decryption=keys["decryption"],
            secrets=settings.secrets,
            # A list of signing secrets says itself how long each one counts.
            overlap_seconds=0 if settings.signing_secrets else ROTATION_OVERLAP_SECONDS,
            opts=self._child(),
        )
        listener = LocalListener(
            f"{self._name}-listener",
            digest=bundle.digest,
            secrets_version=store.version,
            port=settings.listener.port,
            public_url=settings.listener.public_url,
            limits={
                "sync_deadline_seconds": settings.listener.sync_deadline_seconds,
                "tolerance_seconds": settings.listener.tolerance_seconds,
            },
            source_addresses=settings.listener.source_addresses,
            trusted_proxy_hops=settings.listener.trusted_proxy_hops,
            handler_settings=settings.handler_settings,
            agent=agents.inside_listener(agent, bodies) if agent and agent.sink == "direct" else None,
            opts=self._child(before),
        )
        public = settings.listener.public_url
        url = pulumi.Output.from_input(public) if public else listener.url
        return Deployed(url, store.version, listener, tuple(before))

    def _child(self, depends_on: Sequence[pulumi.Resource] = ()) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self, depends_on=list(depends_on))

    def _catalogue(
        self,
        blueprints: Sequence[Mapping[str, Any]],
        entities: Sequence[Mapping[str, Any]],
        before: Sequence[pulumi.Resource],
    ) -> list[pulumi.Resource]:
        """Blueprints, each followed by its entities.

        A blueprint depends on the entities that its own can point at: on destroy it goes first, together with
        what runs have created, or those entities could not be deleted.
        """
        made: dict[str, list[pulumi.Resource]] = {}
        for body in blueprints:
            identifier = body["identifier"]
            targets = [relation["target"] for relation in body.get("relations", {}).values()]
            blueprint = Blueprint(
                f"{self._name}-blueprint-{identifier}",
                body,
                manage=self._settings.blueprints,
                force_destroy=self._settings.force_destroy,
                opts=self._child([*before, *(item for target in targets for item in made.get(target, ()))]),
            )
            made[identifier] = [blueprint, *self._entities(identifier, entities, [*before, blueprint])]
        others = [body for body in entities if body["blueprint"] not in made]
        for identifier in dict.fromkeys(str(body["blueprint"]) for body in others):
            made[identifier] = self._entities(identifier, others, before)
        return [item for items in made.values() for item in items]

    def _entities(
        self, blueprint: str, bodies: Sequence[Mapping[str, Any]], depends_on: Sequence[pulumi.Resource]
    ) -> list[pulumi.Resource]:
        return [
            Entity(
                f"{self._name}-entity-{blueprint}-{body['identifier']}", body, opts=self._child(depends_on)
            )
            for body in bodies
            if body["blueprint"] == blueprint
        ]

    def _actions(
        self,
        bodies: Mapping[str, Mapping[str, Any]],
        permissions: Mapping[str, Mapping[str, Any]],
        depends_on: Sequence[pulumi.Resource],
    ) -> None:
        disabled = self._settings.lint_disabled or None
        # Pulumi's names are without the suffix, so that another suffix renames in place.
        for name, body in bodies.items():
            kind = Automation if body.get("trigger", {}).get("type") == "automation" else Action
            noun = "automation" if kind is Automation else "action"
            action = kind(
                f"{self._name}-{noun}-{name}",
                self._resolve(body),
                lint_disabled=disabled,
                opts=self._child(depends_on),
            )
            if name in permissions:
                ActionPermissions(
                    f"{self._name}-permissions-{name}",
                    action.identifier,
                    permissions[name],
                    opts=self._child([action]),
                )

    def _resolve(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Puts addresses in place of symbolic ones."""
        # Local Port recognises this address as its own, so its real one, which can move, is not in the state.
        base = API_BASE_URLS.get(self._settings.region or "", self._settings.base_url) or API_BASE_URLS["eu"]
        return resolve_urls(
            body,
            route=lambda name: pulumi.Output.concat(self._bases.get(name, self.url), route_path(name)),
            port_api=lambda path: f"{base}{path}",
        )


def _target(settings: Settings, bundle: Bundle) -> _Target | None:
    """What deploys to another target than this machine; its SDK is imported only then."""
    if settings.target == "local":
        if settings.agent is not None:
            agents.require_possible(settings.agent)
        return None
    if settings.target == "aws":
        return _aws_target(settings, bundle)
    from port_webhook_stack.kubernetes import stack as kubernetes

    plan = kubernetes.plan(settings, bundle)

    def deploy(parent: WebhookStack, organisation: Mapping[str, pulumi.Input[str]], keys: _Keys) -> Deployed:
        return kubernetes.deploy(
            parent._name,
            settings,
            plan,
            definitions=parent.definitions,
            organisation=organisation,
            **keys,
            parent=parent,
        )

    return deploy


def _aws_target(settings: Settings, bundle: Bundle) -> _Target:
    from port_webhook_stack.aws import stack as aws

    plan = aws.plan(settings, bundle)

    def deploy(parent: WebhookStack, organisation: Mapping[str, pulumi.Input[str]], keys: _Keys) -> Deployed:
        return aws.deploy(parent._name, settings, plan, organisation=organisation, **keys, parent=parent)

    return deploy


def _build(settings: Settings) -> Bundle:
    if not settings.handlers:
        raise SettingsError(
            f"{MODULE}:handlers",
            "names no handler",
            "List modules or files with decorated functions, for example port_webhook_handlers.bundled.deploy",
        )
    handlers: list[str | Path] = [
        settings.project / handler if handler.endswith(".py") or "/" in handler else handler
        for handler in settings.handlers
    ]
    try:
        return build(handlers, settings.state_dir / "bundles", settings.handler_settings)
    except BundleError as error:
        raise StackError(f"{MODULE}:handlers: {error}") from error


def _require_secrets(settings: Settings, bundle: Bundle) -> None:
    for name, route in bundle.routes.items():
        for secret in route.get("secrets", []):
            if secret not in settings.secrets:
                raise SettingsError(
                    f"{MODULE}:secrets.{secret}",
                    f"is missing, and the handler {name} needs it",
                    f"Run `pulumi config set --secret --path '{MODULE}:secrets.{secret}'`",
                )


def _bodies(
    settings: Settings,
    bundle: Bundle,
    blueprints: Sequence[Mapping[str, Any]],
    definitions: Sequence[Definition],
) -> dict[str, dict[str, Any]]:
    """All definitions as Port gets them, by the identifiers that they were written with."""
    declared = gather(settings, bundle, definitions)
    organisation = look_up(settings, pulumi.log.info) if pulumi.runtime.is_dry_run() else None
    warnings = check(
        declared,
        settings,
        blueprints=blueprints,
        routes=bundle.routes,
        unmanaged=bundle.routes.keys() - bundle.definitions.keys(),
        organisation=organisation,
    )
    for warning in warnings:
        pulumi.log.warn(str(warning))
    if settings.identifier_suffix:
        _refuse_renaming(bundle)
    bodies = with_suffix(by_identifier(declared), settings.identifier_suffix)
    if settings.agent is not None:
        return with_agent(bodies, settings.agent.actions)
    pulled = (settings.aws is not None and settings.aws.ingress == "none") or is_pulled(
        settings.kubernetes, settings.listener.public_url
    )
    return with_agent(bodies) if pulled else bodies


def _refuse_renaming(bundle: Bundle) -> None:
    for name in bundle.definitions:
        if Payload(**bundle.routes[name]["payload"]).header is not None:
            raise SettingsError(
                f"{MODULE}:identifierSuffix",
                f"would rename {name}, whose runs Port is asked about by that name (their id is in a header)",
                "Place the run id in the body, or declare the action with manage=False and its own identifier",
            )


def _organisation(settings: Settings, local_port: LocalPort | None) -> dict[str, pulumi.Input[str]]:
    if local_port:
        return {"clientId": local_port.client_id, "clientSecret": local_port.client_secret}
    return {"clientId": settings.client_id or "", "clientSecret": settings.client_secret or ""}


def _decryption_keys(
    settings: Settings, organisation: Mapping[str, pulumi.Input[str]]
) -> list[pulumi.Input[str]]:
    keys: list[pulumi.Input[str]] = [*settings.decryption_keys]
    # Private keys open what a browser has encrypted; the rest Port encrypts with the client secret.
    if all(key.lstrip().startswith("-----BEGIN") for key in settings.decryption_keys):
        keys.append(organisation["clientSecret"])
    return keys


def _signing_secrets(
    settings: Settings, organisation: Mapping[str, pulumi.Input[str]]
) -> list[dict[str, pulumi.Input[Any]]]:
    if not settings.signing_secrets:
        # Port signs with the organisation's client secret.
        return [{"value": organisation["clientSecret"]}]
    return [
        {"value": secret.value, **({"notAfter": secret.not_after} if secret.not_after else {})}
        for secret in settings.signing_secrets
    ]
