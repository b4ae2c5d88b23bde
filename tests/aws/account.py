"""An AWS account on this machine: moto keeps its resources, and functions really run.

Calls pass through to moto. What moto only writes down is done here: functions run under the real runtime client with
the rights of their role, messages reach them by their event sources, their addresses answer, their logs are shipped.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import threading
import time
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.aws.lambda_host import Function
from tests.aws.stack import Reply, http_event, http_server, sqs_event

ACCOUNT = "123456789012"
_POLL_SECONDS = 1.0


@dataclass
class Deployed:
    """A function that moto has taken.

    Attributes:
        configuration: as Lambda's API shows it.
        root: folder of its code.
        host: its process; None until it is invoked.
        shipped: how many characters of its log are in CloudWatch.
    """

    configuration: dict[str, Any]
    root: Path
    host: Function | None = None
    shipped: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Account:
    """One account and region.

    Attributes:
        url: endpoint of every service.
        denied: calls of functions that their role does not allow.
        calls: operations so far, by who called: a role, or `test` for people and Pulumi.
        paused: event sources hand nothing over.
    """

    def __init__(self, moto_url: str, region: str, folder: Path) -> None:
        self.region = region
        self.denied: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self._moto = moto_url
        self._folder = folder
        self._functions: dict[str, Deployed] = {}
        self.paused = False
        self._sources: dict[str, dict[str, Any]] = {}
        self._policies: dict[str, list[dict[str, Any]]] = {}
        self._unpacking = threading.Lock()
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._server = http_server(self.answer)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._pump = threading.Thread(target=self._deliver_for_ever, daemon=True)
        self._pump.start()

    def client(self, service: str) -> Any:
        """A client of boto3 that talks to moto directly."""
        import boto3

        return boto3.client(
            service,
            region_name=self.region,
            endpoint_url=self._moto,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def aws(self, service: str, operation: str, **arguments: Any) -> Any:
        """One call of boto3."""
        with contextlib.closing(self.client(service)) as client:
            return getattr(client, operation)(**arguments)

    def metrics(self) -> dict[str, list[float]]:
        """Values that the metric filters make of the lines in the log groups, by metric."""
        found: dict[str, list[float]] = {}
        for item in self.aws("logs", "describe_metric_filters")["metricFilters"]:
            lines = self.aws("logs", "filter_log_events", logGroupName=item["logGroupName"])["events"]
            (made,) = item["metricTransformations"]
            for line in lines:
                if (fields := json_line(line["message"])) and matches(item["filterPattern"], fields):
                    value = made["metricValue"]
                    value = fields[value[2:]] if value.startswith("$.") else value
                    found.setdefault(made["metricName"], []).append(float(value))
        return found

    def pid(self, function: str) -> int | None:
        """The process of a function."""
        host = self._functions[function].host
        return None if host is None else host.pid

    def environment(self, function: str) -> dict[str, str]:
        """Variables of a function, as deployed."""
        found: dict[str, str] = self._functions[function].configuration["Environment"]["Variables"]
        return found

    def close(self) -> None:
        self._ended.set()
        self._changed.set()
        self._pump.join()
        self._server.shutdown()
        self._server.server_close()
        for deployed in self._functions.values():
            if deployed.host is not None:
                deployed.host.close()

    # Functions

    def invoke(self, name: str, event: Any) -> Any:
        """Runs an event to its end; see `Function.invoke`."""
        deployed = self._functions[name]
        with deployed.lock:
            if deployed.host is None:
                deployed.host = self._start(name, deployed)
        made = deployed.host.invoke(event)
        self._ship(deployed)
        return made

    def _start(self, name: str, deployed: Deployed) -> Function:
        configuration = deployed.configuration
        role = configuration["Role"].rpartition("/")[2]
        self._policies[role] = self._statements(role)
        environment = {
            # The front knows callers by it.
            "AWS_ACCESS_KEY_ID": role,
            "AWS_SECRET_ACCESS_KEY": "secret-key",
            "AWS_SESSION_TOKEN": "session",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.url,
            **configuration["Environment"]["Variables"],
        }
        return Function(
            name,
            deployed.root,
            configuration["Handler"],
            environment,
            self._folder,
            configuration["Timeout"],
        )

    def _statements(self, role: str) -> list[dict[str, Any]]:
        names = self.aws("iam", "list_role_policies", RoleName=role)["PolicyNames"]
        documents = [
            self.aws("iam", "get_role_policy", RoleName=role, PolicyName=name)["PolicyDocument"]
            for name in names
        ]
        return [statement for document in documents for statement in document["Statement"]]

    def _ship(self, deployed: Deployed) -> None:
        """Puts new lines into CloudWatch, if the role may write there."""
        assert deployed.host is not None
        group = deployed.configuration["LoggingConfig"]["LogGroup"]
        arn = f"arn:aws:logs:{self.region}:{ACCOUNT}:log-group:{group}:log-stream:stream"
        with deployed.lock:
            text = deployed.host.log
            lines = [line for line in text[deployed.shipped :].splitlines() if line.strip()]
            deployed.shipped = len(text)
        role = deployed.configuration["Role"].rpartition("/")[2]
        if not lines or not self._allowed(role, "logs:PutLogEvents", arn):
            return
        with contextlib.closing(self.client("logs")) as logs:
            with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
                logs.create_log_stream(logGroupName=group, logStreamName="stream")
            now = int(time.time() * 1000)
            events = [{"timestamp": now, "message": line} for line in lines]
            logs.put_log_events(logGroupName=group, logStreamName="stream", logEvents=events)

    def _allowed(self, role: str, action: str, resource: str) -> bool:
        def matches(patterns: Any, value: str) -> bool:
            listed = [patterns] if isinstance(patterns, str) else patterns
            return any(re.fullmatch(re.escape(item).replace(r"\*", ".*"), value) for item in listed)

        found = any(
            statement["Effect"] == "Allow"
            and matches(statement["Action"], action)
            and matches(statement["Resource"], resource)
            for statement in self._policies.get(role, [])
        )
        if not found:
            self.denied.append(f"{role}: {action} on {resource}")
        return found

    # Event sources

    def _deliver_for_ever(self) -> None:
        with contextlib.closing(self.client("sqs")) as sqs:
            while not self._ended.is_set():
                self._changed.wait(_POLL_SECONDS)
                self._changed.clear()
                for source in list(self._sources.values()):
                    # A stack that is being removed takes its queues along.
                    with contextlib.suppress(sqs.exceptions.ClientError, KeyError):
                        while not (self.paused or self._ended.is_set()) and self._deliver(sqs, source):
                            pass

    def _deliver(self, sqs: Any, source: Mapping[str, Any]) -> bool:
        name = source["EventSourceArn"].rpartition(":")[2]
        url = f"{self._moto}/{ACCOUNT}/{name}"
        function = source["FunctionName"].rpartition(":")[2]
        messages = sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=source["BatchSize"], AttributeNames=["All"]
        ).get("Messages", [])
        if not messages:
            return False
        role = self._functions[function].configuration["Role"].rpartition("/")[2]
        made = self.invoke(function, sqs_event(messages, source["EventSourceArn"]))
        for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes"):
            self._allowed(role, f"sqs:{action}", source["EventSourceArn"])
        kept = {item["MessageId"] for item in messages}
        if not made.error:
            kept = {item["itemIdentifier"] for item in made.payload["batchItemFailures"]}
        for item in messages:
            if item["MessageId"] not in kept:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=item["ReceiptHandle"])
        return True

    # Requests

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Status, headers and body for a request to this account."""
        address = re.fullmatch(r"/(function-url|http-api)/([\w-]+)(/[^?]*)(?:\?.*)?", path)
        if address is not None:
            return self._visit(address[1], address[2], method, address[3], headers, body)
        caller = headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]
        action, resource = self._meaning(method, path, headers, body)
        self.calls.append((caller, action))
        if caller != "test" and not self._allowed(caller, action, resource):
            refusal = {"__type": "AccessDeniedException", "message": f"not authorized: {action}"}
            return 400, {"content-type": "application/x-amz-json-1.1"}, json.dumps(refusal).encode()
        invocation = re.fullmatch(r"/2015-03-31/functions/([^/]+)/invocations", path)
        if invocation is not None:
            made = self.invoke(unquote(invocation[1]), json.loads(body or b"{}"))
            failed = {"x-amz-function-error": "Unhandled"} if made.error else {}
            return 200, failed, json.dumps(made.payload).encode()
        if path.startswith("/2015-03-31/event-source-mappings"):
            return self._source(method, path, body)
        status, found, answer = self._pass_on(method, path, headers, _light(path, body))
        if 200 <= status < 300:
            answer = self._taken(method, path, body, answer)
        return status, found, answer

    def _meaning(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
        """The IAM action that a request asks for, and the ARN that it asks it of."""
        target = headers.get("x-amz-target", "")
        service, _, operation = target.partition(".")
        if not operation:
            invocation = re.fullmatch(r"/2015-03-31/functions/([^/]+)/invocations", path)
            if invocation is not None:
                return (
                    "lambda:InvokeFunction",
                    f"arn:aws:lambda:{self.region}:{ACCOUNT}:function:{unquote(invocation[1])}",
                )
            return f"{method} {path}", ""
        asked = json.loads(body or b"{}")
        place = f"{self.region}:{ACCOUNT}"
        match service:
            case "AmazonSQS":
                name = str(asked.get("QueueUrl", "")).rpartition("/")[2]
                return f"sqs:{operation}", f"arn:aws:sqs:{place}:{name}"
            case "DynamoDB_20120810":
                return f"dynamodb:{operation}", f"arn:aws:dynamodb:{place}:table/{asked.get('TableName', '')}"
            case "secretsmanager":
                return f"secretsmanager:{operation}", str(asked.get("SecretId", ""))
            case "AmazonSSM":
                return f"ssm:{operation}", f"arn:aws:ssm:{place}:parameter{asked.get('Name', '')}"
        return f"{service}:{operation}", ""

    def _pass_on(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        connection = http.client.HTTPConnection(self._moto.removeprefix("http://"), timeout=30)
        try:
            dropped = ("host", "content-length", "transfer-encoding")
            sent = {name: value for name, value in headers.items() if name not in dropped}
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            kept = ("content-type", "x-amzn-errortype", "x-amzn-requestid")
            found = {name: value for name in kept if (value := response.headers.get(name))}
            return response.status, found, response.read()
        finally:
            connection.close()

    def _taken(self, method: str, path: str, body: bytes, answer: bytes) -> bytes:
        """Does what moto has only written down."""
        if path == "/2015-03-31/functions" and method == "POST":
            asked = json.loads(body)
            code = asked.pop("Code")["ZipFile"]
            self._functions[asked["FunctionName"]] = Deployed(
                {**asked, **json.loads(answer)}, self._unpacked(code)
            )
        elif match := re.fullmatch(r"/2015-03-31/functions/([^/]+)/(code|configuration)", path):
            self._update(match[1], match[2], body, answer)
        elif match := re.fullmatch(r"/2015-03-31/functions/([^/]+)/?", path):
            if method == "DELETE" and (gone := self._functions.pop(match[1], None)) and gone.host:
                gone.host.close()
        elif match := re.fullmatch(r"/2021-10-31/functions/([^/]+)/url", path):
            if method in ("GET", "POST"):
                shown = json.loads(answer) | {"FunctionUrl": f"{self.url}/function-url/{match[1]}/"}
                return json.dumps(shown).encode()
        elif re.fullmatch(r"/v2/apis(/[^/]+)?", path) and method in ("GET", "POST") and b"apiId" in answer:
            shown = json.loads(answer)
            for api in shown.get("items", [shown]):
                api["apiEndpoint"] = f"{self.url}/http-api/{api['apiId']}"
            return json.dumps(shown).encode()
        # A message may have become visible.
        self._changed.set()
        return answer

    def _update(self, name: str, what: str, body: bytes, answer: bytes) -> None:
        deployed = self._functions[name]
        if what == "code":
            deployed.root = self._unpacked(json.loads(body)["ZipFile"])
        elif answer:
            deployed.configuration |= {**json.loads(body), **json.loads(answer)}
        # A new environment for what comes next.
        host, deployed.host = deployed.host, None
        if host is not None:
            host.close()

    def _unpacked(self, code: str) -> Path:
        data = base64.b64decode(code)
        root = self._folder / f"code-{zlib.crc32(data):08x}-{len(data)}"
        # Functions that are created together have the same code.
        with self._unpacking:
            if not root.exists():
                with zipfile.ZipFile(io.BytesIO(data)) as package:
                    package.extractall(root)
        return root

    def _source(self, method: str, path: str, body: bytes) -> Reply:
        name = path.removeprefix("/2015-03-31/event-source-mappings").strip("/")
        if method == "DELETE":
            return 202, {}, json.dumps(self._sources.pop(name)).encode()
        asked = json.loads(body)
        made = {"UUID": name or str(uuid.uuid4()), "BatchSize": 10, **asked}
        self._sources[made["UUID"]] = made
        return 202, {}, json.dumps(made).encode()

    def _visit(
        self, kind: str, name: str, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        """A request from outside, by a Function URL or an HTTP API."""
        function = self._behind_api(name, method, path) if kind == "http-api" else self._behind_url(name)
        if isinstance(function, int):
            return function, {}, b'{"message":"Forbidden or not found"}'
        made = self.invoke(function, http_event(method, path, headers, body))
        if made.error:
            return 502, {}, b'{"message":"Internal Server Error"}'
        return made.payload["statusCode"], made.payload["headers"], made.payload["body"].encode()

    def _behind_url(self, name: str) -> str | int:
        """Since October 2025 AWS wants two permissions."""
        policy = json.loads(self.aws("lambda", "get_policy", FunctionName=name)["Policy"])
        actions = {item["Action"] for item in policy["Statement"] if item["Principal"] in ("*", {"AWS": "*"})}
        return name if {"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"} <= actions else 403

    def _behind_api(self, api: str, method: str, path: str) -> str | int:
        for route in self.aws("apigatewayv2", "get_routes", ApiId=api)["Items"]:
            wanted, _, pattern = route["RouteKey"].partition(" ")
            expression = re.sub(r"\\\{\w+\\\+\\\}", ".+", re.escape(pattern))
            if wanted in ("ANY", method) and re.fullmatch(expression, path):
                integration = self.aws(
                    "apigatewayv2",
                    "get_integration",
                    ApiId=api,
                    IntegrationId=route["Target"].rpartition("/")[2],
                )
                name: str = integration["IntegrationUri"].partition(":function:")[2].partition("/")[0]
                policy = json.loads(self.aws("lambda", "get_policy", FunctionName=name)["Policy"])
                principals = [item["Principal"] for item in policy["Statement"]]
                return name if {"Service": "apigateway.amazonaws.com"} in principals else 500
        return 404


def json_line(text: str) -> dict[str, Any]:
    """A line of a log that is an object; {} for any other."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def matches(pattern: str, fields: Mapping[str, Any]) -> bool:
    """Whether CloudWatch's pattern for JSON lines takes these fields; as much of it as alarms use."""

    def decided(match: re.Match[str]) -> str:
        name, operator, wanted = match.groups()
        value = fields.get(name)
        if wanted == "*":
            return str(name in fields and value is not None)
        same = value == json.loads(wanted)
        return str(same if operator == "=" else name in fields and not same)

    text = re.sub(r'\$\.(\w+)\s*(!?=)\s*("[^"]*"|\d+|\*)', decided, pattern.strip("{} "))
    assert re.fullmatch(r"(True|False|&&|\|\||[()\s])+", text), f"a pattern that this cannot read: {pattern}"
    return bool(eval(text.replace("&&", "and").replace("||", "or")))  # noqa: S307


def _light(path: str, body: bytes) -> bytes:
    """A request without the megabytes of code that moto would only keep."""
    if not re.fullmatch(r"/2015-03-31/functions(/[^/]+/code)?", path) or b"ZipFile" not in body:
        return body
    asked = json.loads(body)
    holder = asked.get("Code", asked)
    digest = zlib.crc32(holder["ZipFile"].encode())
    light = io.BytesIO()
    with zipfile.ZipFile(light, "w") as package:
        package.writestr("digest", str(digest))
    holder["ZipFile"] = base64.b64encode(light.getvalue()).decode()
    return json.dumps(asked).encode()
