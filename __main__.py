"""The program: configuration in, one webhook stack, its addresses out."""

from __future__ import annotations

import pulumi

from port_webhook_handlers.bundled import notify
from port_webhook_handlers.bundled.deploy import blueprints
from port_webhook_stack import Settings, WebhookStack

settings = Settings.load()

# A catalogue to try things on; in a real organisation the entities are there already.
example_services = [
    {
        "blueprint": blueprints.SERVICE["identifier"],
        "identifier": "cart",
        "title": "Cart",
        "properties": {"language": "Python"},
    }
]

stack = WebhookStack(
    "webhook",
    settings,
    blueprints=[blueprints.SERVICE, blueprints.DEPLOYMENT],
    entities=example_services if settings.is_local_port else [],
    definitions=notify.definitions() if notify.SECRET in settings.port_secrets else [],
)

pulumi.export("url", stack.url)
pulumi.export("digest", stack.digest)
pulumi.export("definitions", sorted(stack.definitions))
