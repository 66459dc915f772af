"""A real PgBouncer in front of a test's database."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from batch_pipeline.demo import free_port
from batch_pipeline.testing.tcp_proxy import TcpProxy

_SETTINGS = """
[databases]
* = host=127.0.0.1 port={server_port} user='{user}' password='{password}'

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
{tls}
{switch}
"""

_TLS = """
client_tls_sslmode = require
client_tls_key_file = {certificate}
client_tls_cert_file = {certificate}
"""

_START_SECONDS = 30.0


@contextmanager
def pgbouncer(
    program: str, database_url: str, mode: str, folder: Path, *, certificate: Path | None = None
) -> Iterator[str]:
    """Start a PgBouncer, and yield the URL of the database behind it.

    Args:
        program: the installed program.
        database_url: the database.
        mode: session, transaction or statement.
        folder: for its settings and its log.
        certificate: file with key and certificate of the host; then clients must use TLS.
    """
    url = make_url(database_url)
    socket = url.query.get("host")
    path = f"{socket}/.s.PGSQL.{url.port or 5432}" if socket else None
    address = None if path else (url.host or "127.0.0.1", url.port or 5432)
    settings, log, port = folder / "pgbouncer.ini", folder / "pgbouncer.log", free_port()
    # The Unix socket is for the server's own user, hence a proxy; PgBouncer refuses to run as root.
    with TcpProxy(socket_path=path, address=address) as proxy, log.open("wb") as output:
        settings.write_text(
            _SETTINGS.format(
                server_port=proxy.port,
                user=url.username or "postgres",
                password=url.password or "none",
                port=port,
                mode=mode,
                tls=_TLS.format(certificate=certificate) if certificate else "",
                # In session mode each client keeps a server connection for as long as it lives.
                size=40 if mode == "session" else 4,
                switch="user = nobody" if os.geteuid() == 0 else "",
            )
        )
        with subprocess.Popen([program, str(settings)], stdout=output, stderr=output) as process:
            try:
                through = url.set(host="127.0.0.1", port=port, query={}).render_as_string(False)
                _wait_until_it_answers(process, through, log)
                yield through
            finally:
                process.kill()


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"PgBouncer does not answer: {log.read_text()}")
