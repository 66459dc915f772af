"""Fixtures for all tests: a real PostgreSQL, a database per test, and the pipeline on it."""

import gc
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest

from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.database.session import Database
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.object_store import ObjectStore

#: A server to use instead of an embedded one.
TEST_DATABASE_URL = f"{ENVIRONMENT_PREFIX}TEST_DATABASE_URL"
#: Characters of a parameter in the name of a test.
_LONGEST_ID = 60
#: Free memory that is needed to keep the files of a session in memory (bytes).
_ROOM_IN_MEMORY = 8 * 1024**3


# A busy machine is no fault: hypothesis would fail an example that takes 0.2 s.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# Imported modules and collected tests stay until the end. Garbage collections need not visit them.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Ignore the settings of this machine, and give this session its own folder.

    As root, a second session would change the shared folder, and the user of the first session's
    embedded servers could no longer read it.
    """
    for name in list(os.environ):
        if name.startswith((ENVIRONMENT_PREFIX, "DAGSTER_")) and name != TEST_DATABASE_URL:
            del os.environ[name]
    if config.option.basetemp is None and "PYTEST_XDIST_WORKER" not in os.environ:
        config.option.basetemp = folder = _new_folder()
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def _new_folder() -> str:
    """Make the folder of this session: in memory, if there is room.

    A new database is 300 small files: 0.02 s in memory, 0.1 s or more on a disk, a thousand times.
    """
    memory = Path("/dev/shm")  # `mkdtemp` makes a folder that is ours alone
    prefix = "batch_pipeline_tests_"
    if not (os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM_IN_MEMORY):
        return tempfile.mkdtemp(prefix=prefix)
    for left_behind in memory.glob(f"{prefix}*"):  # by a session that was killed
        if not Path("/proc", left_behind.name.removeprefix(prefix).partition("_")[0]).exists():
            shutil.rmtree(left_behind, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}_", dir=memory)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Keep the names of tests short: some parameters are whole files."""
    if isinstance(val, str | bytes) and len(val) > _LONGEST_ID:
        return f"{val[:_LONGEST_ID]!a}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that take a minute first: at the end, all workers would wait for them."""
    items.sort(key=lambda item: item.get_closest_marker("lengthy") is None)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The server of `BATCH_PIPELINE_TEST_DATABASE_URL`, or an embedded one for all workers."""
    given = os.environ.get(TEST_DATABASE_URL)
    if given:
        return given
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    url = embedded_server_url(root / "server")
    with psycopg.connect(url, autocommit=True) as connection:
        # Nothing here must survive a power cut, and dropping a database would wait for the disk.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    return url


@pytest.fixture(scope="session")
def server(server_url: str) -> DatabaseServer:
    return DatabaseServer(server_url)


@pytest.fixture
def database_url(server: DatabaseServer) -> Iterator[str]:
    with server.new_database() as url:
        yield url


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None,
        home=tmp_path / "home",
        database_url=database_url,
        retry_base_seconds=0,
    )


@pytest.fixture
def open_pipeline() -> Iterator[Callable[[Settings], Pipeline]]:
    """Opens pipelines that are closed when the test ends."""
    opened: list[Pipeline] = []

    def open_(settings: Settings) -> Pipeline:
        opened.append(Pipeline(settings))
        return opened[-1]

    yield open_
    for pipeline in opened:
        pipeline.close()


@pytest.fixture
def pipeline(settings: Settings, open_pipeline: Callable[[Settings], Pipeline]) -> Pipeline:
    return open_pipeline(settings)


@pytest.fixture
def database(pipeline: Pipeline) -> Database:
    return pipeline.database


@pytest.fixture
def change(settings: Settings) -> Callable[..., Settings]:
    """Return the settings of this test, some of them changed."""
    return lambda **values: Settings.model_validate(settings.model_dump() | values)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("object_store") / "log") as store:
        yield store


@pytest.fixture
def s3_url(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty storage on a real S3 server."""
    for name, value in object_store.variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://{object_store.bucket}/{uuid.uuid4().hex}"
