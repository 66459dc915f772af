"""The part of Kubernetes that runs need: an API for jobs, whose pods are processes of this host."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

#: Verb of a request for one thing, and for a list of them.
_VERBS = {"GET": ("get", "list"), "POST": ("create", "create"), "DELETE": ("delete", "delete")}


class Pod:
    """A container of a job, as a process."""

    def __init__(self, container: dict[str, Any], variables: Mapping[str, str], log: Path) -> None:
        named = {each["name"]: each["value"] for each in container["env"] if "value" in each}
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *container["args"]],
                env=os.environ | named | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
            )

    def kill(self) -> None:
        """End it as the kernel or the loss of its node would: it cannot react."""
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """Wait for its end; return its exit code."""
        return self.process.wait(120)

    def lines(self) -> list[str]:
        """Return what it wrote to standard error."""
        return self._log.read_text().splitlines()


class Kubernetes:
    """Accepts jobs, runs their pods, and reports their state.

    Args:
        folder: for what pods write.
        variables: variables that secrets would contain, and those with other values on this host.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, Pod] = {}
        #: Requests so far: resource and verb.
        self.requests: list[tuple[str, str]] = []
        #: Jobs whose node does not answer: their state stays as it was.
        self.silent: set[str] = set()
        self._folder, self._variables = folder, variables
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                code, said = api._handle(self.command, urlsplit(self.path).path, body)
                answer = json.dumps(said).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - named by the server

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        for pod in self.pods.values():
            pod.kill()

    def kubeconfig(self) -> dict[str, Any]:
        """Return a configuration of clients."""
        return {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {}}],
        }

    def _handle(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        found = re.search(r"/namespaces/[^/]+/([a-z]+)(?:/([^/]+))?(?:/([a-z]+))?$", path)
        if not found:
            return 404, {}
        resource, name, part = found.groups()
        self.requests.append((f"{resource}/{part}" if part else resource, _VERBS[method][not name]))
        if method == "POST":
            name = body["metadata"]["name"]
            [container] = body["spec"]["template"]["spec"]["containers"]
            self.jobs[name] = body
            self.pods[name] = Pod(container, self._variables, self._folder / f"{name}.log")
            return 201, body
        if not name:
            return 200, {"items": []}
        if name not in self.jobs:
            return 404, {"kind": "Status", "code": 404}
        if method == "DELETE":
            del self.jobs[name]
            self.pods[name].process.terminate()
            return 200, {}
        return 200, self.jobs[name] | {"status": self._status(name)}

    def _status(self, name: str) -> dict[str, int]:
        code = None if name in self.silent else self.pods[name].process.poll()
        return {"active": 1} if code is None else {"failed" if code else "succeeded": 1}
