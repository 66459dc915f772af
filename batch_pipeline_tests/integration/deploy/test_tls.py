"""PostgreSQL, Redis and S3 over TLS, with certificates of trusted and untrusted authorities."""

import ssl
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import trustme
from celery import Celery

from batch_pipeline.demo import free_port
from batch_pipeline.orchestration.celery.broker import OPTIONS, result_backend
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.object_store import ObjectStore
from batch_pipeline.testing.pgbouncer import pgbouncer
from batch_pipeline.testing.records import add_batch
from batch_pipeline_tests.integration.conftest import program
from batch_pipeline_tests.integration.console import Console
from batch_pipeline_tests.patience import wait_until

PICTURE = Path(__file__).parents[3] / "examples" / "media" / "fog.webp"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Authority:
    trusted: Path
    """Certificate of the authority that signed the host's."""
    other: Path
    """Certificate of an authority that did not sign the host's."""
    host: Path
    """Key and certificate of 127.0.0.1."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = trustme.CA(), trustme.CA()
    found = Authority(folder / "ca.pem", folder / "other.pem", folder / "host.pem")
    ours.cert_pem.write_to_path(found.trusted)
    other.cert_pem.write_to_path(found.other)
    ours.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(found.host)
    # PgBouncer reads it as a user other than root.
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755)
    return found


@pytest.fixture
def console(database_url, tmp_path) -> Console:
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
        "BATCH_PIPELINE_DATABASE_URL": database_url,
    }
    return Console(variables, tmp_path)


def test_postgresql_is_reached_over_tls_and_an_untrusted_one_is_refused(
    authority, console, database_url, tmp_path
):
    folder = tmp_path / "pgbouncer"
    folder.mkdir()
    with pgbouncer(
        program("pgbouncer"), database_url, "session", folder, certificate=authority.host
    ) as url:
        with pytest.raises(psycopg.OperationalError, match="SSL required"):
            psycopg.connect(f"{url}?sslmode=disable")

        def submit(ca: Path):
            trusting = f"{url}?sslmode=verify-full&sslrootcert={ca}"
            return console("submit", PICTURE, "--json", BATCH_PIPELINE_DATABASE_URL=trusting)

        assert submit(authority.trusted).json["queued"] == 1
        refused = submit(authority.other)
    assert refused.code == 1
    assert "certificate verify failed" in refused.err
    assert "Traceback" not in refused.err


@pytest.fixture
def redis_port(authority, tmp_path) -> Iterator[int]:
    port = free_port()
    with subprocess.Popen(
        [
            *(program("redis-server"), "--port", "0", "--tls-port", str(port)),
            *("--tls-cert-file", authority.host, "--tls-key-file", authority.host),
            *("--tls-ca-cert-file", authority.trusted, "--tls-auth-clients", "no"),
            *("--save", "", "--dir", str(tmp_path)),
        ],
        stdout=subprocess.DEVNULL,
    ) as server:
        yield port
        server.terminate()


def test_redis_is_reached_over_tls_and_an_untrusted_one_does_not_stop_processing(
    authority, console, database, redis_port
):
    def url(ca: Path) -> str:
        return f"rediss://127.0.0.1:{redis_port}/0?ssl_ca_certs={ca}"

    def answers() -> bool:
        try:
            return client.ping()
        except redis.ConnectionError:
            return False

    batch_id = add_batch(database, 1)
    with redis.Redis.from_url(url(authority.trusted)) as client, client.pubsub() as channel:
        wait_until(answers, "Redis answers")
        channel.psubscribe("*")
        wait_until(channel.get_message, "the subscription")
        trusting = console("cancel", batch_id, BATCH_PIPELINE_REDIS_URL=url(authority.trusted))
        assert trusting.code == 0, trusting.err
        message = wait_until(channel.get_message, "the message")
        assert str(batch_id) in str(message)

    again = console("retry", batch_id, BATCH_PIPELINE_REDIS_URL=url(authority.other))
    assert again.code == 0, again.err
    assert "certificate verify failed" in again.err


def test_redis_as_a_celery_broker_is_reached_over_tls_and_an_untrusted_one_is_refused(
    authority, console, redis_port
):
    def url(ca: Path) -> str:
        return f"rediss://127.0.0.1:{redis_port}/0?ssl_cert_reqs=required&ssl_ca_certs={ca}"

    def doctor(ca: Path) -> dict[str, Any]:
        answer = console("doctor", "--quick", "--json", BATCH_PIPELINE_CELERY_BROKER_URL=url(ca))
        [check] = [check for check in answer.json if check["name"] == "celery broker"]
        return check

    assert doctor(authority.trusted)["ok"]
    refused = doctor(authority.other)
    assert not refused["ok"]
    assert "certificate verify failed" in refused["detail"]
    broker = url(authority.trusted)
    app = Celery(broker=broker, backend=result_backend(broker), config_source=OPTIONS)
    assert app.backend.client.ping()


def test_an_object_store_is_reached_over_tls_and_an_untrusted_one_is_refused(
    authority, console, tmp_path
):
    with ObjectStore(tmp_path / "log", certificate=authority.host) as store:

        def submit(ca: Path):
            return console(
                *("submit", PICTURE, "--json"),
                BATCH_PIPELINE_STORAGE_URL=f"s3://{store.bucket}/{uuid.uuid4().hex}",
                **store.variables,
                AWS_CA_BUNDLE=str(ca),
            )

        assert submit(authority.trusted).json["queued"] == 1
        refused = submit(authority.other)
    assert refused.code == 1
    assert "certificate verify failed" in refused.err.lower()
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_a_model_server_is_reached_over_tls_and_an_untrusted_one_is_down(
    authority, console, dialect
):
    with ScriptedModelServer() as models:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.host)
        assert models._http
        models._http.socket = context.wrap_socket(models._http.socket, server_side=True)

        def doctor(ca: Path) -> list[str]:
            answer = console(
                *("doctor", "--quick", "--json"),
                BATCH_PIPELINE_ANALYZER=dialect,
                BATCH_PIPELINE_OLLAMA_HOST=models.ollama_url.replace("http:", "https:"),
                BATCH_PIPELINE_OPENAI_BASE_URL=models.openai_url.replace("http:", "https:"),
                SSL_CERT_FILE=str(ca),
            )
            checks = [check for check in answer.json if "model" in check["name"]]
            assert len(checks) == 2
            return ["" if check["ok"] else check["detail"].lower() for check in checks]

        assert doctor(authority.trusted) == ["", ""]
        refused = doctor(authority.other)
    assert all("certificate verify failed" in detail for detail in refused), refused
