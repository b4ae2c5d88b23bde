"""Port's objects as Pulumi resources.

Every definition is Port's own body: what the documentation of Port's API shows can be pasted. Any value in it may
be an output of another resource. Give a renamed resource its old name with
`ResourceOptions(aliases=[Alias(name="old")])`; changing `identifier` renames an action or automation in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, cast, runtime_checkable

import pulumi

from port_webhook_stack.port.normalise import with_order

_CLIENT_ID = "clientId"
_CLIENT_SECRET = "clientSecret"  # noqa: S105 - the name of a property


@runtime_checkable
class HasBody(Protocol):
    """A definition that knows its body in Port's form."""

    def to_body(self) -> Mapping[str, Any]:
        """The body that Port's API takes."""


Definition = Mapping[str, Any] | HasBody
"""Port's body of an object, or an object that gives it."""


class _PortObject(pulumi.CustomResource):
    identifier: pulumi.Output[str]
    """Identifier in Port."""

    adopted: pulumi.Output[bool]
    """Whether the object existed before and was taken over: it is then kept on destroy."""


class Action(_PortObject):
    """A self-service action."""

    def __init__(
        self,
        name: str,
        definition: Definition,
        *,
        adopt: bool | None = None,
        delete_adopted: bool | None = None,
        lint_disabled: Sequence[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name.
            definition: Port's body of an action. If its form says nothing about the order of the inputs, they
                are shown in the order in which they are written here.
            adopt: take over an action that exists already and differs; it is then kept on destroy.
            delete_adopted: delete it on destroy nevertheless.
            lint_disabled: rules of lint that this definition is not checked for.
            opts: options of the resource.
        """
        props = {
            **with_order(_body(definition)),
            **_ownership(adopt, delete_adopted),
            "lintDisabled": lint_disabled,
        }
        super().__init__("port-webhook:index:Action", name, props, opts)


class ActionPermissions(pulumi.CustomResource):
    """Who may run and who may approve an action.

    A part that is declared (`execute`, `approve`) is managed as a whole; the other one is left alone. They end
    with the action: removing this resource alone leaves them as they are.
    """

    def __init__(
        self,
        name: str,
        action: pulumi.Input[str],
        permissions: Mapping[str, Any],
        *,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name.
            action: identifier of the action, best the `identifier` of its resource.
            permissions: Port's `{"execute": {…}, "approve": {…}}`.
            opts: options of the resource.
        """
        super().__init__(
            "port-webhook:index:ActionPermissions", name, {**permissions, "action": action}, opts
        )


class Automation(_PortObject):
    """An automation."""

    def __init__(
        self,
        name: str,
        definition: Definition,
        *,
        adopt: bool | None = None,
        delete_adopted: bool | None = None,
        lint_disabled: Sequence[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name.
            definition: Port's body of an automation.
            adopt: take over an automation that exists already and differs; it is then kept on destroy.
            delete_adopted: delete it on destroy nevertheless.
            lint_disabled: rules of lint that this definition is not checked for.
            opts: options of the resource.
        """
        props = {
            **_body(definition),
            **_ownership(adopt, delete_adopted),
            "lintDisabled": lint_disabled,
        }
        super().__init__("port-webhook:index:Automation", name, props, opts)


class Blueprint(_PortObject):
    """A blueprint."""

    def __init__(
        self,
        name: str,
        definition: Definition,
        *,
        manage: Literal["create", "existing"] | None = None,
        force_destroy: bool | None = None,
        adopt: bool | None = None,
        delete_adopted: bool | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name.
            definition: Port's body of a blueprint.
            manage: `create` (default), or `existing`: it is only checked that Port has it with these
                properties and relations, and it is never written or deleted.
            force_destroy: delete its entities together with it.
            adopt: merge the definition into a blueprint that exists already; it is then kept on destroy.
            delete_adopted: delete it on destroy nevertheless.
            opts: options of the resource.
        """
        props = {
            **_body(definition),
            **_ownership(adopt, delete_adopted),
            "manage": manage,
            "forceDestroy": force_destroy,
        }
        super().__init__("port-webhook:index:Blueprint", name, props, opts)


class Entity(_PortObject):
    """An entity. Only what is declared is managed; runs and integrations may fill in the rest.

    The id for imports is `<blueprint>|<identifier>`.
    """

    def __init__(
        self,
        name: str,
        definition: Definition,
        *,
        blueprint: pulumi.Input[str] | None = None,
        adopt: bool | None = None,
        delete_adopted: bool | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name.
            definition: Port's body of an entity.
            blueprint: identifier of its blueprint, unless `definition` has it as `blueprint`.
            adopt: take over an entity that exists already and differs; it is then kept on destroy.
            delete_adopted: delete it on destroy nevertheless.
            opts: options of the resource.
        """
        props = {**_body(definition), **_ownership(adopt, delete_adopted)}
        if blueprint is not None:
            props["blueprint"] = blueprint
        super().__init__("port-webhook:index:Entity", name, props, opts)


class Secret(pulumi.CustomResource):
    """A secret of the organisation, used in templates as `{{ .secrets.NAME }}`.

    Port never returns the value. An imported secret ignores changes of its value.
    """

    def __init__(
        self,
        name: str,
        secret_name: pulumi.Input[str],
        secret_value: pulumi.Input[str] | None = None,
        *,
        description: pulumi.Input[str] | None = None,
        adopt: bool | None = None,
        delete_adopted: bool | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name.
            secret_name: name in Port, 1 to 100 of A-Z a-z 0-9 - _.
            secret_value: the value; left out only for an imported secret.
            description: shown in Port, 200 characters at most.
            adopt: overwrite a secret that exists already; it is then kept on destroy.
            delete_adopted: delete it on destroy nevertheless.
            opts: options of the resource.
        """
        props = {
            "secretName": secret_name,
            "secretValue": None if secret_value is None else pulumi.Output.secret(secret_value),
            "description": description,
            **_ownership(adopt, delete_adopted),
        }
        super().__init__("port-webhook:index:Secret", name, props, opts)


class Webhook(_PortObject):
    """An ingest webhook: what is posted to its address becomes entities.

    It has nothing to do with the listener, to which Port posts.
    """

    url: pulumi.Output[str]
    """Where to post (secret)."""

    def __init__(
        self,
        name: str,
        definition: Definition,
        *,
        adopt: bool | None = None,
        delete_adopted: bool | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name.
            definition: Port's body of a webhook, with `mappings` and `security`.
            adopt: take over a webhook that exists already and differs; it is then kept on destroy.
            delete_adopted: delete it on destroy nevertheless.
            opts: options of the resource.
        """
        body = _body(definition)
        if body.get("security") is not None:
            body["security"] = pulumi.Output.secret(body["security"])
        props = {**body, **_ownership(adopt, delete_adopted), "url": None, "webhookKey": None}
        super().__init__("port-webhook:index:Webhook", name, props, opts)


class LocalPort(pulumi.CustomResource):
    """The local Port of a stack whose `port-webhook:region` is `local`.

    It starts with the provider; on destroy this resource stops it and removes all that was in it. Whatever lives
    in it must depend on this resource.
    """

    def __init__(self, name: str, *, opts: pulumi.ResourceOptions | None = None) -> None:
        """
        Args:
            name: Pulumi's name.
            opts: options of the resource.
        """
        secret = pulumi.ResourceOptions(additional_secret_outputs=[_CLIENT_SECRET])
        super().__init__(
            "port-webhook:local:LocalPort",
            name,
            {_CLIENT_ID: None, _CLIENT_SECRET: None},
            pulumi.ResourceOptions.merge(opts, secret),
        )

    @property
    def client_id(self) -> pulumi.Output[str]:
        """Client id of its organisation."""
        return cast("pulumi.Output[str]", pulumi.get(self, _CLIENT_ID))

    @property
    def client_secret(self) -> pulumi.Output[str]:
        """Client secret of its organisation (secret)."""
        return cast("pulumi.Output[str]", pulumi.get(self, _CLIENT_SECRET))


class Provider(pulumi.ProviderResource):
    """An explicit provider, for a second organisation beside the stack's own. Values must be known at preview."""

    def __init__(
        self,
        name: str,
        *,
        region: Literal["eu", "us", "local"] | None = None,
        base_url: str | None = None,
        client_id: str | None = None,
        client_secret: pulumi.Input[str] | None = None,
        state_dir: str | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name.
            region: of the organisation, or `local`.
            base_url: address of Port's API in place of a region.
            client_id: Port's client id; default PORT_CLIENT_ID.
            client_secret: Port's client secret; default PORT_CLIENT_SECRET.
            state_dir: folder of local state, relative to the project; default `.state/<stack>`.
            opts: options of the resource.
        """
        props = {
            "region": region,
            "baseUrl": base_url,
            _CLIENT_ID: client_id,
            _CLIENT_SECRET: None if client_secret is None else pulumi.Output.secret(client_secret),
            "stateDir": state_dir,
        }
        super().__init__("port-webhook", name, props, opts)


def _body(definition: Definition) -> dict[str, Any]:
    return dict(definition.to_body() if isinstance(definition, HasBody) else definition)


def _ownership(adopt: bool | None, delete_adopted: bool | None) -> dict[str, Any]:
    return {"adopt": adopt, "deleteAdopted": delete_adopted}
