"""Commands without the time for imports: each is a fork of a waiting process.

A command needs one to three seconds for imports and a tenth of a second for its task, and the tests
run hundreds of commands. Environment, folder, output and exit code are as in a normal process.
"""

import atexit
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_LONGEST_REQUEST = 1 << 20


class WarmCommands:
    """The waiting process, started at its first use; not thread-safe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket

    def run(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        seconds: float,
    ) -> tuple[int, str, str]:
        """Run `batch-pipeline`; returns its exit code and what it printed on both streams.

        Raises:
            TimeoutError: it did not end in time; it is killed.
        """
        if self._process is None:
            self._start()
        # No temporary file has a name that a test could find in its folder.
        with (
            os.fdopen(os.memfd_create("out"), "r+b") as out,
            os.fdopen(os.memfd_create("err"), "r+b") as err,
        ):
            request = {
                "arguments": [*arguments],
                "environment": {**environment},
                "folder": str(folder),
            }
            socket.send_fds(
                self._socket, [json.dumps(request).encode()], [out.fileno(), err.fileno()]
            )
            self._socket.settimeout(seconds)
            try:
                answer = self._socket.recv(_LONGEST_REQUEST)
            except TimeoutError:
                self._stop()
                raise
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return json.loads(answer), texts[0], texts[1]

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # It has no threads when it forks.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        atexit.register(self._stop)

    def _stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._socket.close()
        atexit.unregister(self._stop)


def _import_what_commands_import() -> None:
    importlib.import_module("batch_pipeline.cli")
    importlib.import_module("batch_pipeline.orchestration.code_location")
    services = importlib.import_module("batch_pipeline.services")
    for module in pkgutil.walk_packages(services.__path__, f"{services.__name__}."):
        importlib.import_module(module.name)


def _be_the_command(request: dict[str, Any], out: int, err: int) -> NoReturn:
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["batch-pipeline", *request["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from batch_pipeline.__main__ import main  # noqa: PLC0415

    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # Ends like the interpreter, without the clean-up of all modules, which takes a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(connection: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, 2)
        if not message:
            return
        if (child := os.fork()) == 0:
            connection.close()
            _be_the_command(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        connection.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    _import_what_commands_import()
    _serve(socket.socket(fileno=int(sys.argv[1])))
