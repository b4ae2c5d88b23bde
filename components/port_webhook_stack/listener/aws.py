"""The listener of target aws: receiver, workers, ledger and outbox on Lambda, SQS and DynamoDB."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import pulumi
import pulumi_aws as aws

from port_webhook_handlers.runtime.aws.ledger import DEAD_INDEX
from port_webhook_stack.aws import policies
from port_webhook_stack.aws.alarms import make_alarms
from port_webhook_stack.aws.functions import LambdaFunction, make_function
from port_webhook_stack.aws.ingress import function_url, http_api
from port_webhook_stack.aws.naming import Naming
from port_webhook_stack.aws.plan import Group, Plan
from port_webhook_stack.aws.queues import QueuePair, consume, make_queues
from port_webhook_stack.secrets_store.aws import AwsSecretsStore

_RECEIVER_SECONDS: Final = 10
_REPORTER_SECONDS: Final = 120
_REPORTER_CONCURRENCY: Final = 10
_DEAD_LETTERS_SECONDS: Final = 60
# With delays of up to half an hour, reports are tried for longer than SQS keeps them.
_REPORT_RECEIVES: Final = 1000
_MEMORY: Final = 256


class AwsListener(pulumi.ComponentResource):
    """Everything that receives, runs and reports. Nothing that names it changes when only code does."""

    url: pulumi.Output[str] | None
    """Base URL, without a trailing slash; None without an ingress."""

    receiver: aws.lambda_.Function
    """The function that verifies."""

    table: aws.dynamodb.Table
    """The ledger."""

    def __init__(
        self,
        resource_name: str,
        plan: Plan,
        *,
        store: AwsSecretsStore,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the component.
            plan: what is deployed.
            store: the secrets that it reads.
            opts: options of the component.
        """
        super().__init__("port-webhook:aws:Listener", resource_name, {}, opts)
        self._plan = plan
        self._store = store
        self._naming = naming = Naming(resource_name, plan.settings, self)
        self.table = self._table()
        self._reports = make_queues(
            naming,
            "reports",
            visibility_seconds=6 * _REPORTER_SECONDS,
            dead_visibility_seconds=_DEAD_LETTERS_SECONDS,
            receives=_REPORT_RECEIVES,
        )
        work = {group.name: self._work_queues(group) for group in plan.workers}
        functions: dict[str, LambdaFunction] = {}
        synchronous = {group.name: self._synchronous(group) for group in plan.synchronous}
        functions |= {f"sync-{name}": made for name, made in synchronous.items()}
        functions["receiver"] = self._receiver(work, synchronous)
        for group in plan.workers:
            functions[f"worker-{group.name}"] = self._worker(group, work[group.name])
        functions["reporter"] = self._reporter()
        functions["dead-letters"] = self._dead_letters(work)
        self.receiver = functions["receiver"].function
        match plan.settings.ingress:
            case "http-api":
                self.url = http_api(naming, self.receiver)
            case "function-url":
                self.url = function_url(naming, self.receiver)
            case "none":
                self.url = None
        make_alarms(
            naming,
            functions=functions,
            queues={
                "reports": self._reports.queue,
                **{f"runs-{name}": pair.queue for name, pair in work.items()},
            },
            dead_queues={
                "reports-dead": self._reports.dead,
                **{f"runs-{name}-dead": pair.dead for name, pair in work.items()},
            },
        )
        self.register_outputs({"url": self.url, "table": self.table.name})

    def _table(self) -> aws.dynamodb.Table:
        settings = self._plan.settings
        return aws.dynamodb.Table(
            self._naming.resource("ledger"),
            name=self._naming.aws("ledger"),
            billing_mode="PAY_PER_REQUEST",
            hash_key="run_id",
            attributes=[
                aws.dynamodb.TableAttributeArgs(name="run_id", type="S"),
                aws.dynamodb.TableAttributeArgs(name="dead", type="S"),
                aws.dynamodb.TableAttributeArgs(name="updated_at", type="N"),
            ],
            # Only dead letters have the attribute `dead`, so only they are in the index.
            global_secondary_indexes=[
                aws.dynamodb.TableGlobalSecondaryIndexArgs(
                    name=DEAD_INDEX,
                    key_schemas=[
                        aws.dynamodb.TableGlobalSecondaryIndexKeySchemaArgs(
                            attribute_name=name, key_type=kind
                        )
                        for name, kind in (("dead", "HASH"), ("updated_at", "RANGE"))
                    ],
                    projection_type="ALL",
                )
            ],
            ttl=aws.dynamodb.TableTtlArgs(attribute_name="expires", enabled=True),
            server_side_encryption=aws.dynamodb.TableServerSideEncryptionArgs(
                enabled=True, kms_key_arn=settings.kms_key
            )
            if settings.kms_key
            else None,
            point_in_time_recovery=aws.dynamodb.TablePointInTimeRecoveryArgs(enabled=settings.protect),
            deletion_protection_enabled=settings.protect,
            tags=self._naming.tags,
            opts=self._naming.opts(),
        )

    def _work_queues(self, group: Group) -> QueuePair:
        return make_queues(
            self._naming,
            f"runs-{group.name}",
            visibility_seconds=group.visibility_seconds,
            dead_visibility_seconds=6 * _DEAD_LETTERS_SECONDS,
            receives=group.receives,
        )

    def _receiver(
        self, work: Mapping[str, QueuePair], synchronous: Mapping[str, LambdaFunction]
    ) -> LambdaFunction:
        plan, store, reports = self._plan, self._store, self._reports.queue
        here = plan.answers_here or bool(synchronous)
        secrets = {"signing": store.signing, **({"api": store.api} if plan.confirms else {})}
        return make_function(
            self._naming,
            plan,
            "receiver",
            entry="receiver",
            policy=policies.receiver,
            arns={
                "queues": [*(pair.queue.arn for pair in work.values()), reports.arn],
                "table": self.table.arn,
                "secrets": [secret.arn for secret in secrets.values()],
                "functions": [made.function.arn for made in synchronous.values()],
            },
            deployment={
                "table": self.table.name,
                "secrets": {name: secret.arn for name, secret in secrets.items()},
                "queues": {name: pair.queue.url for name, pair in work.items()},
                "reports": reports.url,
                "functions": {name: made.function.name for name, made in synchronous.items()},
                "sync_deadline_seconds": plan.sync_deadline_seconds,
                "tolerance_seconds": plan.tolerance_seconds,
                "overlap_seconds": plan.overlap_seconds,
                **({"port_base_url": plan.port_base_url} if plan.confirms else {}),
                **({"source_addresses": list(plan.source_addresses)} if plan.source_addresses else {}),
                **({"trusted_proxy_hops": plan.trusted_proxy_hops} if plan.source_addresses else {}),
            },
            seconds=math.ceil(plan.sync_deadline_seconds) + 2 if here else _RECEIVER_SECONDS,
            memory=plan.settings.receiver_memory,
            concurrency=plan.settings.receiver_concurrency,
            depends_on=[secret.version for secret in secrets.values()],
        )

    def _worker(self, group: Group, queues: QueuePair) -> LambdaFunction:
        part = f"worker-{group.name}"
        made = make_function(
            self._naming,
            self._plan,
            part,
            entry="worker",
            policy=policies.worker,
            arns={
                "queue": queues.queue.arn,
                "reports": self._reports.queue.arn,
                "table": self.table.arn,
                "secret": self._secret_of(group),
                "handlers": self._statements(group),
                "vpc": self._vpc_function(group, part),
            },
            deployment={
                "table": self.table.name,
                "secrets": self._secrets_of(group),
                "queues": {group.name: queues.queue.url},
                "reports": self._reports.queue.url,
                "credentials": bool(group.statements),
                "overlap_seconds": self._plan.overlap_seconds if group.decrypts else 0,
            },
            seconds=group.worker_seconds,
            memory=group.settings.memory or self._plan.settings.worker_memory,
            network=group.settings,
            depends_on=self._versions_of(group),
        )
        consume(self._naming, part, queues.queue, made.function, batch=1, concurrency=group.concurrency)
        return made

    def _synchronous(self, group: Group) -> LambdaFunction:
        return make_function(
            self._naming,
            self._plan,
            f"sync-{group.name}",
            entry="synchronous",
            policy=policies.synchronous,
            arns={
                "reports": self._reports.queue.arn,
                "secret": self._secret_of(group),
                "handlers": self._statements(group),
                "vpc": self._vpc_function(group, f"sync-{group.name}"),
            },
            deployment={
                "secrets": self._secrets_of(group),
                "reports": self._reports.queue.url,
                "credentials": bool(group.statements),
                "overlap_seconds": self._plan.overlap_seconds if group.decrypts else 0,
            },
            seconds=math.ceil(self._plan.sync_deadline_seconds) + 1,
            memory=group.settings.memory or self._plan.settings.worker_memory,
            network=group.settings,
            depends_on=self._versions_of(group),
        )

    def _reporter(self) -> LambdaFunction:
        store, reports = self._store, self._reports.queue
        made = make_function(
            self._naming,
            self._plan,
            "reporter",
            entry="reporter",
            policy=policies.reporter,
            arns={"reports": reports.arn, "table": self.table.arn, "api_secret": store.api.arn},
            deployment={
                "table": self.table.name,
                "secrets": {"api": store.api.arn},
                "reports": reports.url,
                "port_base_url": self._plan.port_base_url,
            },
            seconds=_REPORTER_SECONDS,
            memory=_MEMORY,
            depends_on=[store.api.version],
        )
        consume(self._naming, "reporter", reports, made.function, batch=10, concurrency=_REPORTER_CONCURRENCY)
        return made

    def _dead_letters(self, work: Mapping[str, QueuePair]) -> LambdaFunction:
        made = make_function(
            self._naming,
            self._plan,
            "dead-letters",
            entry="dead_letters",
            policy=policies.dead_letters,
            arns={
                "queues": [pair.dead.arn for pair in work.values()],
                "reports": self._reports.queue.arn,
                "table": self.table.arn,
            },
            deployment={
                "table": self.table.name,
                "queues": {name: pair.dead.url for name, pair in work.items()},
                "reports": self._reports.queue.url,
            },
            seconds=_DEAD_LETTERS_SECONDS,
            memory=_MEMORY,
        )
        for name, pair in work.items():
            consume(
                self._naming, f"dead-letters-{name}", pair.dead, made.function, batch=10, concurrency=None
            )
        return made

    def _secret_of(self, group: Group) -> pulumi.Input[str]:
        return self._store.groups[group.name].arn if group.name in self._store.groups else ""

    def _secrets_of(self, group: Group) -> dict[str, pulumi.Input[str]]:
        return {"handlers": self._secret_of(group)} if group.name in self._store.groups else {}

    def _versions_of(self, group: Group) -> list[pulumi.Resource]:
        return [self._store.groups[group.name].version] if group.name in self._store.groups else []

    def _vpc_function(self, group: Group, part: str) -> pulumi.Input[str]:
        """ARN of a function of the group, if it is in a VPC; before the function exists."""
        if not group.settings.subnets:
            return ""
        name = self._naming.aws(part)
        return self.table.arn.apply(
            lambda arn: arn.replace(":dynamodb:", ":lambda:").partition(":table/")[0] + f":function:{name}"
        )

    def _statements(self, group: Group) -> pulumi.Input[Any]:
        if not group.statements:
            return []
        # The table's own ARN tells where the stack is: arn:partition:dynamodb:region:account:…
        return self.table.arn.apply(
            lambda arn: policies.filled(
                group.statements,
                partition=arn.split(":")[1],
                region=arn.split(":")[3],
                account=arn.split(":")[4],
            )
        )
