"""An S3-compatible server for tests: `moto` in a separate process that can be stopped."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from batch_pipeline.demo import free_port

START_SECONDS = 60.0


class ObjectStore:
    """A server with one bucket; a context manager that starts and stops it.

    Args:
        log: file that it writes to.
        host: where it listens.
        certificate: file with key and certificate of the host; it then speaks HTTPS.
    """

    bucket = "media"

    def __init__(
        self, log: Path, host: str = "127.0.0.1", *, certificate: Path | None = None
    ) -> None:
        self._log = log
        self._host, self._port = host, free_port()
        self._certificate = certificate
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"http{'s' if self._certificate else ''}://{self._host}:{self._port}"

    @property
    def variables(self) -> Mapping[str, str]:
        """Return the environment variables for clients of S3."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def refusing_everybody(self) -> Iterator[None]:
        """Refuse every key while the context is open."""
        self._accept_requests(b"0")
        try:
            yield
        finally:
            self._accept_requests(b"inf")

    def _accept_requests(self, number: bytes) -> None:
        httpx.post(f"{self.url}/moto-api/reset-auth", content=number).raise_for_status()

    def start(self) -> None:
        """Start with an empty bucket; returns when the server answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-W", "ignore", "-m", "moto.server"),
                    *("-H", self._host, "-p", str(self._port)),
                    *(("-s", "-c", file, "-k", file) if (file := self._certificate) else ()),
                ],
                env=os.environ | {"MOTO_S3_CUSTOM_ENDPOINTS": self.url},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                # Not verified here: tests check whether clients trust the certificate.
                httpx.put(f"{self.url}/{self.bucket}", timeout=10, verify=False).raise_for_status()
                return
            except httpx.TransportError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"it did not start:\n{self._log.read_text()}") from error
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop; everything that was stored is lost."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()
