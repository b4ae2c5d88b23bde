"""The program: configuration in, one webhook stack, its addresses out."""

from __future__ import annotations

import pulumi

from port_webhook_handlers.bundled import notify
from port_webhook_stack import Settings, WebhookStack
from port_webhook_stack.catalog import blueprints_of, catalog_of, environments_of

settings = Settings.load()
catalog = catalog_of(settings)

# A catalogue to try things on; in a real organisation the entities are there already.
example_services = [catalog.service.entity("cart", title="Cart", properties={"language": "Python"})]

stack = WebhookStack(
    "webhook",
    settings,
    blueprints=blueprints_of(settings),
    entities=[*environments_of(settings), *(example_services if settings.is_local_port else [])],
    definitions=notify.definitions(catalog=catalog) if notify.SECRET in settings.port_secrets else [],
)

pulumi.export("url", stack.url)
pulumi.export("digest", stack.digest)
pulumi.export("definitions", sorted(stack.definitions))
