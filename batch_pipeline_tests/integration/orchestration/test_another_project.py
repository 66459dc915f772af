"""Another Dagster project adds the pipeline with one YAML file; this clone is a project itself.

`dg dev` in this clone: `make dev` runs it (`acceptance/test_dagster_dev.py`).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from batch_pipeline import BatchPipelineComponent
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.orchestration.resources import PipelineResource
from batch_pipeline.orchestration.run_logs import LOGGERS
from batch_pipeline.settings import Settings

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
JOBS = {"process_batch", "sweep_backlog", "pause", "resume"}


@pytest.fixture
def run(tmp_path):
    """Run a command of the environment in a folder, with its own home."""
    environment = os.environ | {
        "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
        "DAGSTER_DG_CLI_CONFIG": str(tmp_path / "dg.toml"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "src",
        "VIRTUAL_ENV": str(BIN.parent),
    }

    def run_(folder: Path, *command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_


@pytest.mark.slow
def test_a_new_project_adds_the_pipeline_with_one_yaml_file(run, tmp_path):
    run(tmp_path, "create-dagster", "project", "library", "--no-uv-sync")
    folder = tmp_path / "library"
    component = folder / "src" / "library" / "defs" / "pipeline" / "defs.yaml"
    component.parent.mkdir(parents=True)
    component.write_text(
        "type: batch_pipeline.BatchPipelineComponent\n"
        "attributes:\n"
        "  settings:\n"
        "    max_attempts: 3\n"
    )

    found = json.loads(run(folder, "dg", "list", "defs", "--json"))

    assert {job["name"] for job in found["jobs"]} == JOBS
    assert "pending_batches" in {sensor["name"] for sensor in found["sensors"]}
    assert {resource["name"] for resource in found["resources"]} == {
        "batch_pipeline",
        "batch_pipeline_worker",
    }


@pytest.mark.slow
def test_this_clone_is_a_project_whose_definitions_load(run):
    run(ROOT, "dg", "check", "defs")


@pytest.mark.slow
def test_dg_lists_the_definitions_of_this_clone(run):
    found = json.loads(run(ROOT, "dg", "list", "defs", "--json"))

    assert {job["name"] for job in found["jobs"]} == JOBS
    assert "pending_batches" in {sensor["name"] for sensor in found["sensors"]}
    assert "batch_report" in {asset["asset_key"] for asset in found["assets"]}


def test_importing_the_package_does_nothing():
    code = (
        "import sys, batch_pipeline; "
        "print([name for name in sys.modules if name.startswith(('dagster', 'sqlalchemy'))], "
        "'BatchPipelineComponent' in dir(batch_pipeline))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split("\n")[0] == "[] True"


def test_settings_of_the_component_replace_those_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BATCH_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("BATCH_PIPELINE_MAX_ATTEMPTS", "2")

    definitions = BatchPipelineComponent(settings={"max_attempts": 3}).build_defs(None)

    [process_upload] = [
        node
        for node in definitions.resolve_job_def("process_batch").nodes
        if node.name == "process_upload"
    ]
    assert process_upload.retry_policy.max_retries == 2
    assert definitions.resources["batch_pipeline"].max_attempts == 3
    with dg.build_resources({"it": definitions.resources["batch_pipeline"]}) as resources:
        assert resources.it.settings.max_attempts == 3
        assert resources.it.settings.home == tmp_path


@dg.op
def an_op(context: dg.OpExecutionContext) -> None:
    context.log.info("a line")


@dg.job
def job_of_the_project() -> None:
    an_op()


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("loggers", [{}, {"console": dg.colored_console_logger}])
def test_the_component_leaves_the_loggers_of_the_other_jobs_alone(log_format, loggers, capfd):
    ours = BatchPipelineComponent(settings={"log_format": log_format}).build_defs(None)
    theirs = dg.Definitions(jobs=[job_of_the_project], loggers=loggers)

    both = dg.Definitions.merge(ours, theirs)

    assert {name: both.resolve_job_def(name).loggers for name in JOBS} == dict.fromkeys(
        JOBS, LOGGERS
    )
    job = both.resolve_job_def("job_of_the_project")
    assert job.loggers == {"console": dg.colored_console_logger}
    named = {"loggers": {"console": {"config": {"name": "theirs"}}}}
    for run_config, name in ({}, "dagster"), (named, "theirs"):
        job.execute_in_process(run_config=run_config)
        assert re.search(f" - {name} - INFO - .* - a line", capfd.readouterr().err)


def test_the_page_of_the_resource_names_each_setting_but_no_secret():
    config = PipelineResource.to_config_schema().as_field().config_type.fields

    secrets = {name for name, each in Settings.model_fields.items() if each.annotation is SecretStr}
    assert set(config) == Settings.model_fields.keys() - secrets
    assert config["lease_seconds"].description == Settings.model_fields["lease_seconds"].description


def test_a_secret_in_the_file_of_the_component_is_refused_as_pages_would_show_it():
    for name, value in (
        ("openai_api_key", "sk-1"),
        ("database_url", "postgresql://me:s3cr3t@db/x"),
        ("notify_urls", "slack://s3cr3t/of/a/team"),
    ):
        component = BatchPipelineComponent(settings={name: value})
        with pytest.raises(
            ConfigurationError, match=f"environment, BATCH_PIPELINE_{name.upper()}"
        ) as refused:
            component.build_defs(None)
        assert "s3cr3t" not in str(refused.value)
    without = BatchPipelineComponent(settings={"redis_url": "redis://cache:6379/0"})
    assert without.build_defs(None).resources["batch_pipeline"].redis_url


@pytest.mark.parametrize(
    ("name", "meant"),
    [("analyser", "did you mean analyzer?"), ("colour", "docs/settings.md lists all")],
)
def test_a_setting_that_does_not_exist_is_refused_with_the_nearest_name(name, meant):
    with pytest.raises(ConfigurationError) as refused:
        BatchPipelineComponent(settings={name: "ollama"}).build_defs(None)
    assert str(refused.value) == f"BatchPipelineComponent has no setting {name}: {meant}"
