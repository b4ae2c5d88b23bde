"""What the listener is compared with, each on uvicorn with httptools and uvloop, one worker.

`python -m benchmarks._peers bare|fastapi <port>`
"""

import json
import sys
import time
from base64 import b64encode
from typing import Any

from benchmarks._load import SECRET


def bare() -> Any:
    """Reads the body and answers."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"11")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"ok":true}'})

    return application


def fastapi() -> Any:
    """What one would write with FastAPI, pydantic and standardwebhooks; a set in memory claims runs."""
    from fastapi import FastAPI, HTTPException, Request
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
    from standardwebhooks import Webhook, WebhookVerificationError

    class Context(BaseModel):
        action: str
        runId: str  # noqa: N815

    class Inputs(BaseModel):
        model_config = ConfigDict(extra="forbid")
        version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
        replicas: int = Field(ge=1, le=20)
        region: str
        reason: str = Field(max_length=200)

    class Envelope(BaseModel):
        port_context: Context
        inputs: Inputs
        entity: dict[str, Any]
        trigger: dict[str, Any]

    application = FastAPI()
    webhook = Webhook(b64encode(SECRET.encode()).decode())
    claimed: set[str] = set()
    counters: dict[str, int] = {}

    def handler(inputs: Inputs) -> dict[str, Any]:
        return {"ok": True}

    @application.post("/webhooks/bench_sync")
    async def receive(request: Request) -> dict[str, Any]:
        body = await request.body()
        try:
            webhook.verify(body, dict(request.headers))
            envelope = Envelope.model_validate_json(body)
        except WebhookVerificationError:
            raise HTTPException(401) from None
        except ValidationError:
            raise HTTPException(422) from None
        run_id = envelope.port_context.runId
        if run_id in claimed:
            raise HTTPException(409)
        claimed.add(run_id)
        answer = handler(envelope.inputs)
        counters["200"] = counters.get("200", 0) + 1
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": "run ended",
            "run": run_id,
            "status": "SUCCESS",
        }
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()
        return answer

    return application


def main() -> None:
    import uvicorn

    kind, port = sys.argv[1:]
    application = {"bare": bare, "fastapi": fastapi}[kind]()
    uvicorn.run(
        application, port=int(port), http="httptools", loop="uvloop", access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
