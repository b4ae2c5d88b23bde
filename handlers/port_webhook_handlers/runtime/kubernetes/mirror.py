"""A copy of one kind of objects, kept up to date by list and watch in a thread of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from port_webhook_handlers.runtime.kubernetes.api import ApiServer, ApiServerError
from port_webhook_handlers.runtime.logs import Log

Manifest = dict[str, Any]

_PAGE: Final = "500"
_WATCH_SECONDS: Final = 240
_QUIET_SECONDS: Final = 20.0
_FIRST_PAUSE_SECONDS: Final = 0.2
_MAX_PAUSE_SECONDS: Final = 10.0


class Mirror:
    """Objects by name.

    Args:
        api: the API server.
        path: of the collection.
        selector: label selector.
        changed: called with each object that was added, changed or removed, in the mirror's thread.
        strip: removes from an object what is not needed, to save memory.
        log: its log.
    """

    def __init__(
        self,
        api: ApiServer,
        path: str,
        selector: str,
        changed: Callable[[Manifest], None],
        log: Log,
        strip: Callable[[Manifest], None] = lambda item: None,
    ) -> None:
        self._api = api
        self._path = path
        self._query = {"labelSelector": selector}
        self._changed = changed
        self._strip = strip
        self._log = log
        self._objects: dict[str, Manifest] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.synced = threading.Event()

    def start(self) -> None:
        """Starts the thread; it ends with the process, or after `stop`."""
        threading.Thread(target=self._work, name=f"mirror {self._path}", daemon=True).start()

    def stop(self) -> None:
        """Lets the thread end after its next line."""
        self._stopped.set()

    def get(self, name: str) -> Manifest | None:
        """An object as last seen."""
        with self._lock:
            return self._objects.get(name)

    def all(self) -> list[Manifest]:
        """All objects as last seen."""
        with self._lock:
            return list(self._objects.values())

    def _work(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopped.is_set():
            try:
                version = self._list()
                while not self._stopped.is_set():
                    pause = _FIRST_PAUSE_SECONDS
                    version = self._watch(version)
            except ApiServerError as error:
                if error.status != 410:
                    self._log("watch interrupted", path=self._path, error=str(error))
                    self._stopped.wait(pause)
                    pause = min(_MAX_PAUSE_SECONDS, pause * 2)
            except Exception as error:  # noqa: BLE001
                self._log.error("watch failed", error, path=self._path)
                self._stopped.wait(_MAX_PAUSE_SECONDS)

    def _list(self) -> str:
        found: dict[str, Manifest] = {}
        query = {**self._query, "limit": _PAGE}
        while True:
            page = self._api.request("GET", self._path, query=query)
            for item in page.get("items") or ():
                self._clean(item)
                found[item["metadata"]["name"]] = item
            following = page["metadata"].get("continue")
            if not following:
                break
            query["continue"] = following
        with self._lock:
            former, self._objects = self._objects, found
        for name, item in {**former, **found}.items():
            if former.get(name) != found.get(name):
                self._changed(item)
        self.synced.set()
        return str(page["metadata"]["resourceVersion"])

    def _watch(self, version: str) -> str:
        query = {
            **self._query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        deadline = time.monotonic() + _WATCH_SECONDS
        for line in self._api.lines(self._path, query, timeout=_WATCH_SECONDS + _QUIET_SECONDS):
            if self._stopped.is_set():
                break
            event = json.loads(line)
            item = event["object"]
            if event["type"] == "ERROR":
                raise ApiServerError(
                    int(item.get("code", 500)), str(item.get("reason")), str(item.get("message"))
                )
            version = str(item["metadata"]["resourceVersion"])
            if event["type"] == "BOOKMARK":
                continue
            self._clean(item)
            name = item["metadata"]["name"]
            with self._lock:
                if event["type"] == "DELETED":
                    self._objects.pop(name, None)
                else:
                    self._objects[name] = item
            self._changed(item)
        else:
            if time.monotonic() < deadline - _WATCH_SECONDS / 2:
                # A server that ends watches early must not be asked in a tight loop.
                self._stopped.wait(_FIRST_PAUSE_SECONDS)
        return version

    def _clean(self, item: Manifest) -> None:
        item["metadata"].pop("managedFields", None)
        self._strip(item)
