"""The Compose quickstart, with its services as processes and a second code server.

Each service uses the command, the environment and the health check of the Compose file, and the
instance settings that the file mounts. Replaced are names of hosts, folders and ports, and the
images of PostgreSQL and Redis (by servers of this machine).
"""

import json
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from batch_pipeline.demo import free_port
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline.testing.stack import PostgresProcess
from batch_pipeline_tests.acceptance.conftest import MEDIA, GraphQl
from batch_pipeline_tests.patience import wait_until

from .composed import WAIT_SECONDS, ComposedProcesses, read_as_compose_does

pytestmark = [
    pytest.mark.slow,
    pytest.mark.proof,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("compose"),
]

ANNA, BEN = uuid.uuid4(), uuid.uuid4()
OF_ANNA = ("fog.webp", "night.jpg", "sea.jpg")
OF_BEN = ("forest.webp", "lighthouse.gif")
SECOND = "batch_pipeline_of_another_host"
#: deploy/dagster.yaml
RUNS_OF_ONE_USER = 2


@dataclass
class World:
    """The running services, and what they use."""

    services: ComposedProcesses
    pipeline: Pipeline
    models: ScriptedModelServer
    graphql: GraphQl
    metrics_url: str

    def submit(self, user, names):
        return submit(
            [MEDIA / name for name in names],
            user_id=user,
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.pipeline.settings,
        ).batch_id

    def wait_for_the_end(self, *batch_ids):
        for batch_id in batch_ids:
            wait_until(
                lambda wanted=batch_id: (
                    batch_row(self.pipeline.database, wanted).status == "completed"
                ),
                f"batch {batch_id} is completed",
                WAIT_SECONDS,
            )
            wait_until(
                lambda wanted=batch_id: {r["status"] for r in self.runs(wanted)} == {"SUCCESS"},
                f"the runs of {batch_id} are over",
                WAIT_SECONDS,
            )

    def runs(self, *batch_ids):
        """Return runs with the times of creation, start and end, and their tags."""
        query = """query ($tags: [ExecutionTag!]) {
            runsOrError(filter: {tags: $tags}) { ... on Runs { results {
                status creationTime startTime endTime tags { key value }
                repositoryOrigin { repositoryLocationName }
            } } } }"""
        found = []
        for batch_id in batch_ids:
            tags = [{"key": "batch_pipeline/batch_id", "value": str(batch_id)}]
            found += self.graphql(query, tags=tags)["runsOrError"]["results"]
        for run in found:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory, redis_url) -> Iterator[World]:
    home = tmp_path_factory.mktemp("compose")
    postgres = PostgresProcess(home)
    code, second, web, metrics = (free_port() for _ in range(4))
    with ScriptedModelServer(latency_seconds=2) as models:
        changed = {
            "BATCH_PIPELINE_ANALYZER": "ollama",
            "BATCH_PIPELINE_OLLAMA_HOST": models.ollama_url,
            "BATCH_PIPELINE_UPLOADS_PER_RUN": "1",
            # As many as the connections of the embedded server allow.
            "BATCH_PIPELINE_MAX_RUNS_IN_FLIGHT": "7",
        }
        composed = read_as_compose_does(home, **changed)
        services = ComposedProcesses(
            composed,
            home,
            {
                "postgresql://batch_pipeline:change_me@postgres:5432/batch_pipeline": postgres.url,
                "redis://redis:6379/0": redis_url,
                "/opt/dagster": str(home / "opt"),
                "/data/uploads": str(home / "uploads"),
                "0.0.0.0": "127.0.0.1",
                "host: code-location": "host: 127.0.0.1",
                "4000": str(code),
                "3000": str(web),
                "9464": str(metrics),
            },
        )
        workspace = home / "opt" / "workspace.yaml"
        entry = f"  - grpc_server:\n      host: 127.0.0.1\n      port: {second}\n"
        workspace.write_text(f"{workspace.read_text()}{entry}      location_name: {SECOND}\n")
        moved = {str(code): str(second)}
        try:
            services.start("migrate")
            assert services.wait_for_the_end("migrate") == 0
            services.start("code-location")
            services.start("code-location", name="second", moved=moved)
            services.start("metrics")
            services.wait_until_healthy("code-location")
            services.wait_until_healthy("code-location", name="second", moved=moved)
            services.start("webserver")
            services.start("daemon")
            for name in ("webserver", "daemon", "metrics"):
                services.wait_until_healthy(name)
            settings = Settings(
                _env_file=None,
                home=home,
                database_url=postgres.url,
                storage_url=str(home / "uploads"),
                max_runs_in_flight=7,
            )
            pipeline = Pipeline(settings)
            yield World(
                services,
                pipeline,
                models,
                GraphQl(f"http://127.0.0.1:{web}"),
                f"http://127.0.0.1:{metrics}/metrics",
            )
            pipeline.close()
        finally:
            services.stop()
            postgres.close()


def most_at_once(runs):
    """Return how many runs were in progress at the same time, at most."""
    moments = [(run["startTime"], 1) for run in runs] + [(run["endTime"], -1) for run in runs]
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def assert_checks_metrics_and_logs_are_as_the_documents_promise(world):
    doctor = world.services.execute("code-location", "batch-pipeline", "doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout
    with urllib.request.urlopen(world.metrics_url, timeout=60) as answer:
        scraped = answer.read().decode()
    assert 'batch_pipeline_ended_uploads{state="completed"}' in scraped
    # A code server's log holds those of its children, the run workers.
    for names, said in (
        (("code-location", "second"), "took 1 upload"),
        (("daemon",), "Launched "),
        (("webserver",), "Serving dagster-webserver"),
    ):
        logs = [world.services.log_file(name).read_text() for name in names]
        lines = "".join(logs).splitlines()
        found = [json.loads(line) for line in lines if said in line]
        assert found, lines
        assert all({"timestamp", "level", "logger", "event"} <= set(line) for line in found)


def test_two_users_two_code_servers_one_dispatch_each_and_the_limit_of_a_user_holds(world):
    world.models.calls.clear()
    anna, ben = world.submit(ANNA, OF_ANNA), world.submit(BEN, OF_BEN)
    world.wait_for_the_end(anna, ben)

    for batch_id, names in ((anna, OF_ANNA), (ben, OF_BEN)):
        states = Counter(
            row.processing_status for row in upload_rows(world.pipeline.database, batch_id)
        )
        assert states == {"completed": len(names)}
    # Both code servers have the sensor. Still, each slice had one run, and each picture was
    # described once.
    runs = world.runs(anna, ben)
    assert len({run["tags"]["dagster/run_key"] for run in runs}) == len(runs)
    assert len(runs) == len(OF_ANNA) + len(OF_BEN)
    assert len(world.models.calls_of("vision")) == len(OF_ANNA) + len(OF_BEN)

    of_anna = sorted(world.runs(anna), key=lambda run: run["startTime"])
    assert most_at_once(of_anna) <= RUNS_OF_ONE_USER
    assert most_at_once(world.runs(ben)) <= RUNS_OF_ONE_USER
    # The limit delayed the runs: the last was requested before the first was over.
    assert of_anna[-1]["creationTime"] < of_anna[0]["endTime"]

    assert_checks_metrics_and_logs_are_as_the_documents_promise(world)


def test_the_second_code_server_goes_on_without_the_first(world):
    world.services.kill("code-location")
    batch_id = world.submit(BEN, OF_BEN)
    world.wait_for_the_end(batch_id)
    places = {run["repositoryOrigin"]["repositoryLocationName"] for run in world.runs(batch_id)}
    assert places == {SECOND}
