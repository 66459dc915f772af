"""The instance settings of production, opened by Dagster itself on a real database."""

import importlib.resources
import shutil
import sys
from pathlib import Path

import boto3
import dagster as dg
import pytest
import yaml
from dagster._core.storage.tags import WILL_RETRY_TAG
from dagster_aws.s3 import S3ComputeLogManager
from sqlalchemy.pool import NullPool

from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.testing.object_store import ObjectStore
from batch_pipeline.testing.records import add_batch

DEPLOY = Path(__file__).parents[3] / "deploy"


@pytest.fixture
def dagster_url(server, monkeypatch):
    with server.new_database(migrated=False) as url:
        monkeypatch.setenv("BATCH_PIPELINE_DAGSTER_DATABASE_URL", url)
        yield url


def opened(tmp_path, content):
    (tmp_path / "dagster.yaml").write_text(content)
    return dg.DagsterInstance.from_config(str(tmp_path))


@pytest.mark.slow
def test_dagster_opens_the_instance_settings_with_the_classes_that_they_name(
    dagster_url, tmp_path, monkeypatch, s3_url
):
    del s3_url  # AWS_ENDPOINT_URL names its server
    monkeypatch.setenv("COMPUTE_LOGS_BUCKET", ObjectStore.bucket)
    monkeypatch.setenv("COMPUTE_LOGS_PREFIX", "logs")
    shutil.copy(DEPLOY / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_ref().storage_data.class_name == "PipelineInstanceStorage"
        assert type(instance.event_log_storage._engine.pool) is not NullPool
        assert isinstance(instance.compute_log_manager, S3ComputeLogManager)
        step = ["run", "compute_logs", "step"]
        with instance.compute_log_manager.capture_logs(step):
            print("what a run prints", file=sys.stderr, flush=True)
        bucket = boto3.resource("s3").Bucket(ObjectStore.bucket)
        [stored] = [found for found in bucket.objects.filter(Prefix="logs/") if found.size]
        assert stored.key.endswith("step.err")
        assert stored.get()["Body"].read() == b"what a run prints\n"

        queue = instance.get_concurrency_config().run_queue_config
        assert queue
        assert queue.max_concurrent_runs == 8
        assert queue.tag_concurrency_limits == [
            {
                "key": "batch_pipeline/user_id",
                "value": {"applyLimitPerUniqueValue": True},
                "limit": 2,
            }
        ]
        assert (instance.run_monitoring_enabled, instance.run_retries_enabled) == (True, False)
        assert instance.run_monitoring_max_resume_run_attempts == 0
        assert instance.get_runs_count() == 0  # its tables are there


def test_the_instance_settings_of_the_package_equal_those_of_a_clone():
    packaged = importlib.resources.files("batch_pipeline.orchestration") / "dagster.yaml"
    assert packaged.read_text() == (DEPLOY.parent / "dagster.yaml").read_text()


def test_the_instance_settings_for_one_host_differ_only_in_where_runs_print():
    production, one_host = (
        yaml.safe_load((DEPLOY / name).read_text())
        for name in ("dagster.yaml", "dagster_one_host.yaml")
    )
    assert production.pop("compute_logs")
    assert one_host == production


@pytest.fixture
def shared_instance(dagster_url, tmp_path):
    """Another project's instance: separate storages, like the Helm chart, and retries of runs."""
    config = {"postgres_url": dagster_url.replace("postgresql://", "postgresql+psycopg2://", 1)}
    storages = {
        name: {"module": f"dagster_postgres.{module}", "class": f"Postgres{kind}", "config": config}
        for name, module, kind in (
            ("run_storage", "run_storage", "RunStorage"),
            ("event_log_storage", "event_log", "EventLogStorage"),
            ("schedule_storage", "schedule_storage", "ScheduleStorage"),
        )
    }
    retries = {"run_retries": {"enabled": True, "max_retries": 3}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({**storages, **retries}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance
        for storage in (instance.event_log_storage, instance.run_storage):
            storage._engine.dispose()


def test_a_run_in_another_projects_instance_keeps_its_connections_and_is_not_retried_by_dagster(
    shared_instance, pipeline
):
    batch_id = add_batch(pipeline.database, 1)  # its file is missing
    resources = {"batch_pipeline": dg.ResourceDefinition.hardcoded_resource(pipeline)}
    job = build_definitions(pipeline.settings, resources).resolve_job_def("process_batch")
    storages = (shared_instance.event_log_storage, shared_instance.run_storage)
    assert {type(storage._engine.pool) for storage in storages} == {NullPool}
    assert shared_instance.run_retries_enabled

    result = job.execute_in_process(
        {"ops": {"load_batch": {"config": {"batch_id": str(batch_id)}}}},
        instance=shared_instance,
        raise_on_error=False,
    )

    assert not result.success
    assert shared_instance.get_run_by_id(result.run_id).tags[WILL_RETRY_TAG] == "false"
    assert all(storage._engine.pool.checkedin() for storage in storages)
