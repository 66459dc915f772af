"""Runs in pods: the launcher that the chart configures, its jobs, and the loss of a pod or a node.

dagster-k8s sends real requests to the listener of `kubernetes_api.py`, which runs each pod as a
process of this host. Everything else is as in a cluster: the command, the environment, Dagster's
own storage as the chart sets it, its run monitoring, and the uploads in an S3-compatible store.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from sqlalchemy import make_url, text

from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.run_ends import clean_up_failed_run
from batch_pipeline.orchestration.sweep import sweep_once
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline_tests.patience import wait_until
from batch_pipeline_tests.runs import record_run

from .chart import CODE, DEPLOY, IMAGE, LAUNCHER, ROLE, container_context, run_launcher
from .kubernetes_api import Kubernetes, Pod

MEDIA = Path(__file__).parents[3] / "examples" / "media"
FIVE = ("fog.webp", "sea.jpg", "city.jpg", "night.jpg", "forest.webp")
INSTANCE = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())

pytestmark = pytest.mark.slow


@dataclass
class Cluster:
    """Acts on the cluster like the daemon, which launches and monitors runs."""

    pipeline: Pipeline
    instance: dg.DagsterInstance
    api: Kubernetes

    def submit(self, *names: str) -> UUID:
        batch_id = submit(
            [MEDIA / name for name in names],
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.pipeline.settings,
        ).batch_id
        assert batch_id
        return batch_id

    def launch(self, batch_id: UUID) -> tuple[dg.DagsterRun, Pod]:
        """Launch a run of a batch; return it and its pod."""
        settings = self.pipeline.settings
        run = record_run(
            self.instance,
            build_definitions(settings).resolve_job_def("process_batch"),
            run_config={"ops": {"load_batch": {"config": {"batch_id": str(batch_id)}}}},
            tags={BATCH_TAG: str(batch_id)},
            # What a code server that the chart started reports about itself.
            job_code_origin=JobPythonOrigin(
                "process_batch",
                RepositoryPythonOrigin(
                    executable_path="python",
                    code_pointer=ModuleCodePointer("batch_pipeline.definitions", "defs", None),
                    container_image=IMAGE,
                    entry_point=["dagster"],
                    container_context=container_context(),
                ),
            ),
        )
        self.instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
        return run, self.api.pods[f"dagster-run-{run.run_id}"]

    def monitor(self) -> None:
        """Look at all runs once, like the daemon every `poll_interval_seconds`."""
        with WorkspaceProcessContext(self.instance, EmptyWorkspaceTarget()) as context:
            errors = execute_run_monitoring_iteration(context, logging.getLogger("daemon"))
            assert not any(errors)

    def status(self, run: dg.DagsterRun) -> dg.DagsterRunStatus:
        found = self.instance.get_run_by_id(run.run_id)
        assert found
        return found.status

    def uploads(self, batch_id: UUID) -> list[str]:
        return [row.processing_status for row in upload_rows(self.pipeline.database, batch_id)]

    def finish(self, batch_id: UUID) -> None:
        """Process what is left in another run, without the pause after a lost one."""
        with self.pipeline.database.transaction() as connection:
            connection.execute(text("UPDATE uploads SET not_before = NULL"))
        _, pod = self.launch(batch_id)
        assert pod.wait() == 0, pod.lines()
        assert batch_row(self.pipeline.database, batch_id).status == "completed"


@pytest.fixture
def model_server() -> Iterator[ScriptedModelServer]:
    with ScriptedModelServer() as server:
        yield server


@pytest.fixture
def open_cluster(  # noqa: PLR0917 - pytest passes them by name
    server, object_store, s3_url, change, open_pipeline, model_server, tmp_path, monkeypatch
) -> Iterator[Callable[..., Cluster]]:
    """Opens the cluster with settings, which its pods have from the values and the secret."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    opened: list[Kubernetes] = []
    with server.new_database(migrated=False) as dagster_url:

        def open_(**changed: object) -> Cluster:
            settings = change(
                storage_url=s3_url,
                log_format="json",
                analyzer="ollama",
                ollama_host=model_server.ollama_url,
                max_concurrent_uploads=1,
                **changed,
            )
            own = {
                "DAGSTER_HOME": str(home),
                "BATCH_PIPELINE_DATABASE_URL": settings.database_url,
                "BATCH_PIPELINE_STORAGE_URL": s3_url,
                "BATCH_PIPELINE_ANALYZER": "ollama",
                "BATCH_PIPELINE_OLLAMA_HOST": model_server.ollama_url,
                "BATCH_PIPELINE_MAX_CONCURRENT_UPLOADS": "1",
                "BATCH_PIPELINE_LEASE_SECONDS": str(settings.lease_seconds),
                # As many as the connections of the test server allow.
                "BATCH_PIPELINE_MAX_RUNS_IN_FLIGHT": "4",
            }
            api = Kubernetes(tmp_path, object_store.variables | own)
            opened.append(api)
            api.__enter__()
            launcher = run_launcher()
            # The only difference: we are not inside of the cluster.
            launcher["config"] |= {
                "load_incluster_config": False,
                "kubeconfig_file": str(tmp_path / "kubeconfig"),
            }
            (tmp_path / "kubeconfig").write_text(yaml.safe_dump(api.kubeconfig()))
            (home / "dagster.yaml").write_text(
                yaml.safe_dump(
                    {
                        "run_launcher": launcher,
                        "run_monitoring": INSTANCE["run_monitoring"],
                        "telemetry": INSTANCE["telemetry"],
                        **plain_storage(dagster_url),
                    }
                )
            )
            instance = dg.DagsterInstance.from_config(str(home))
            return Cluster(open_pipeline(settings), instance, api)

        for name, value in object_store.variables.items():
            monkeypatch.setenv(name, value)
        yield open_
        for api in opened:
            api.__exit__(None, None, None)


def plain_storage(url: str) -> dict[str, object]:
    """Return Dagster's own storage, as the chart configures it."""
    url = make_url(url).set(drivername="postgresql+psycopg2").render_as_string(False)
    return {
        f"{what}_storage": {
            "module": f"dagster_postgres.{module}",
            "class": f"Postgres{name}Storage",
            "config": {"postgres_url": url},
        }
        for what, module, name in (
            ("run", "run_storage", "Run"),
            ("event_log", "event_log", "EventLog"),
            ("schedule", "schedule_storage", "Schedule"),
        )
    }


def test_a_run_becomes_a_pod_as_the_values_say_that_processes_the_batch_and_logs_json(open_cluster):
    cluster = open_cluster()
    batch_id = cluster.submit("fog.webp")
    run, pod = cluster.launch(batch_id)
    assert pod.wait() == 0, pod.lines()
    assert cluster.status(run) == dg.DagsterRunStatus.SUCCESS, pod.lines()
    assert batch_row(cluster.pipeline.database, batch_id).status == "completed"

    lines = [json.loads(line) for line in pod.lines()]
    assert {line["run_id"] for line in lines if "run_id" in line} == {run.run_id}
    assert all({"timestamp", "level", "logger", "event"} <= set(line) for line in lines)
    [took] = [line for line in lines if line["event"].endswith("took 1 upload")]
    named = (took["job"], took["step"], took["batch_id"], took["level"])
    assert named == ("process_batch", "load_batch", str(batch_id), "info")

    [job] = cluster.api.jobs.values()
    spec = job["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert container["image"] == IMAGE
    # Not those of the code server, whose pod needs less.
    assert container["resources"] == LAUNCHER["resources"] != CODE["resources"]
    assert {"secretRef": {"name": "batch-pipeline"}} in container["envFrom"]
    assert [each for each in container["env"] if each in CODE["env"]] == CODE["env"]
    # Each process that opens the instance opens the launcher, which reads the token.
    assert spec["automountServiceAccountToken"]
    assert spec["serviceAccountName"] == "media-dagster"
    assert spec["terminationGracePeriodSeconds"] == 60
    assert (job["spec"]["ttlSecondsAfterFinished"], job["spec"]["backoffLimit"]) == (3600, 0)


def in_upload_2_of_5(
    cluster: Cluster, model_server: ScriptedModelServer
) -> tuple[UUID, dg.DagsterRun, Pod]:
    """The first upload is completed, the second is at the model, three are left."""
    batch_id = cluster.submit(*FIVE)
    model_server.play("vision", [None, Fault.HANG])
    run, pod = cluster.launch(batch_id)
    wait_until(lambda: len(model_server.calls_of("vision")) == 2, "the second call")
    assert cluster.uploads(batch_id) == ["completed", "analyzing", *["pending"] * 3]
    return batch_id, run, pod


def assert_each_described_once_but_the_one_in_work(model_server: ScriptedModelServer) -> None:
    prompts = Counter(bytes(call.images[0]) for call in model_server.calls_of("vision"))
    assert sorted(prompts.values()) == [1, 1, 1, 1, 2]


def held(cluster: Cluster) -> bool:
    """Tell whether a run holds an upload."""
    query = text("SELECT count(*) FROM uploads WHERE owner_run_id IS NOT NULL")
    with cluster.pipeline.database.transaction() as connection:
        return bool(connection.scalar(query))


def lose_pod(api: Kubernetes, job: str) -> None:
    """The pod is killed, for example for its memory; its node says so."""
    api.pods[job].kill()


def lose_node(api: Kubernetes, job: str) -> None:
    """The node is gone, and somebody or something has removed what was on it."""
    api.pods[job].kill()
    del api.jobs[job]


@pytest.mark.parametrize("lose", [lose_pod, lose_node])
def test_monitoring_ends_the_run_of_a_lost_pod_and_another_one_takes_the_rest(
    open_cluster, model_server, lose
):
    cluster = open_cluster()
    batch_id, run, _ = in_upload_2_of_5(cluster, model_server)
    cluster.monitor()
    assert cluster.status(run) == dg.DagsterRunStatus.STARTED, "a living pod is left alone"

    lose(cluster.api, f"dagster-run-{run.run_id}")
    cluster.monitor()
    assert cluster.status(run) == dg.DagsterRunStatus.FAILURE
    # What the sensor does with a failed run.
    cleanup = clean_up_failed_run(cluster.pipeline, run, died=True, reason="its pod is gone")
    assert cleanup.returned == 4
    cluster.finish(batch_id)
    assert_each_described_once_but_the_one_in_work(model_server)
    assert set(cluster.api.requests) <= {
        (resource, verb) for resource, verbs in ROLE.items() for verb in verbs
    }


def test_uploads_of_a_node_that_no_longer_answers_return_with_their_lease(
    open_cluster, model_server
):
    cluster = open_cluster(lease_seconds=5)
    batch_id, run, pod = in_upload_2_of_5(cluster, model_server)
    cluster.api.silent.add(f"dagster-run-{run.run_id}")
    pod.kill()
    cluster.monitor()
    assert cluster.status(run) == dg.DagsterRunStatus.STARTED, "Kubernetes says that it runs"

    def sweep_until(true: Callable[[], bool], what: str) -> None:
        def swept() -> bool:
            sweep_once(cluster.instance, cluster.pipeline, LeftOut())
            return true()

        wait_until(swept, what)

    waiting = ["completed", *["pending"] * 4]
    sweep_until(lambda: cluster.uploads(batch_id) == waiting and not held(cluster), "the lease")
    cluster.finish(batch_id)
    sweep_until(lambda: cluster.status(run) != dg.DagsterRunStatus.STARTED, "the run is closed")
    assert cluster.status(run) == dg.DagsterRunStatus.FAILURE
    assert_each_described_once_but_the_one_in_work(model_server)


def test_an_evicted_pod_releases_its_uploads(open_cluster, model_server):
    cluster = open_cluster()
    batch_id, _, pod = in_upload_2_of_5(cluster, model_server)
    asked = time.monotonic()
    pod.process.terminate()
    pod.wait()
    assert (
        time.monotonic() - asked
        < LAUNCHER["runK8sConfig"]["podSpecConfig"]["terminationGracePeriodSeconds"]
    )
    assert cluster.uploads(batch_id) == ["completed", *["pending"] * 4]
    assert not held(cluster)
