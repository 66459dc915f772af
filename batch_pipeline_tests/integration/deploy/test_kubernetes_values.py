"""The values for Dagster's Helm chart: known keys, valid pods, and no contradictions.

The tests need neither Helm nor a cluster. The keys that the chart accepts are listed below; they
come from its schema. dagster-k8s itself makes the Job of a run and sends it to a listener instead
of Kubernetes; the test runs its command.
"""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict
from kubernetes.client import V1Probe

from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.run_logs import logger_config
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.testing.records import batch_row

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
MEDIA = ROOT / "examples" / "media"
VALUES = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
INSTANCE = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
[CODE] = VALUES["dagster-user-deployments"]["deployments"]
WEB, DAEMON = VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]

_POD = """
    affinity annotations env envConfigMaps envSecrets image labels livenessProbe nodeSelector
    podSecurityContext readinessProbe resources schedulerName securityContext startupProbe
    tolerations volumeMounts volumes
"""
#: Keys of chart 1.13, by path; only those that are used here.
ACCEPTED = {
    "": """
        additionalInstanceConfig busybox computeLogManager concurrency dagster-user-deployments
        dagsterDaemon dagsterWebserver flower generateCeleryConfigSecret
        generatePostgresqlPasswordSecret global imagePullSecrets ingress migrate postgresql
        pythonLogs rabbitmq redis retention runLauncher scheduler serviceAccount telemetry
    """,
    "global": """
        celeryConfigSecretName dagsterHome dagsterInstanceConfigMap postgresqlSecretName
        serviceAccountName
    """,
    "serviceAccount": "annotations create name",
    "dagster-user-deployments": "deployments enableSubchart enabled imagePullSecrets",
    "dagster-user-deployments.deployments": f"""
        {_POD} codeServerArgs dagsterApiGrpcArgs deploymentNamespace deploymentStrategy
        includeConfigInLaunchedRuns initContainers name port replicaCount sidecarContainers
    """,
    "dagsterWebserver": f"""
        {_POD} checkDbReadyInitContainer dbPoolMaxOverflow dbPoolRecycle dbStatementTimeout
        deploymentLabels enableReadOnly extraContainers extraPrependedInitContainers
        initContainerResources logFormat logLevel nameOverride pathPrefix replicaCount service
        workspace
    """,
    "dagsterDaemon": f"""
        {_POD} backfills checkDbReadyInitContainer deploymentLabels enabled extraContainers
        extraPrependedInitContainers heartbeatTolerance initContainerResources logFormat
        runCoordinator runMonitoring runRetries schedules sensors
    """,
    "dagsterDaemon.sensors": "numSubmitWorkers numWorkers useThreads",
    "dagsterDaemon.runCoordinator": "config enabled type",
    "dagsterDaemon.runCoordinator.config.queuedRunCoordinator": """
        blockOpConcurrencyLimitedRuns dequeueIntervalSeconds dequeueNumWorkers dequeueUseThreads
        maxConcurrentRuns tagConcurrencyLimits
    """,
    "dagsterDaemon.runMonitoring": """
        cancelTimeoutSeconds enabled freeSlotsAfterRunEndSeconds maxResumeRunAttempts
        maxRuntimeSeconds pollIntervalSeconds startTimeoutSeconds
    """,
    "dagsterDaemon.runRetries": "enabled maxRetries retryOnAssetOrOpFailure",
    "runLauncher": "config type",
    "runLauncher.config.k8sRunLauncher": """
        envConfigMaps envSecrets envVars failPodOnRunFailure image imagePullPolicy jobNamespace
        kubeconfigFile labels loadInclusterConfig resources runK8sConfig schedulerName
        securityContext volumeMounts volumes
    """,
    "runLauncher.config.k8sRunLauncher.runK8sConfig": """
        containerConfig jobMetadata jobSpecConfig podSpecConfig podTemplateSpecMetadata
    """,
    "postgresql": """
        enabled image postgresqlDatabase postgresqlHost postgresqlParams postgresqlPassword
        postgresqlScheme postgresqlUsername service
    """,
    "computeLogManager": "config type",
    "computeLogManager.config.s3ComputeLogManager": """
        bucket endpointUrl localDir prefix region showUrlOnly skipEmptyFiles uploadExtraArgs
        uploadInterval useSsl verify verifyCertPath
    """,
    "retention": "autoMaterialize enabled schedule sensor",
    "retention.sensor": "purgeAfterDays",
    "retention.schedule": "purgeAfterDays",
    "telemetry": "enabled",
    "pythonLogs": "dagsterHandlerConfig managedPythonLoggers pythonLogLevel",
}


def snake_case_key(key):
    return key if key == "applyLimitPerUniqueValue" else re.sub("[A-Z]", r"_\g<0>", key).lower()


def snake_case(value):
    """Write a value like the chart's templates for ``dagster.yaml``."""
    if isinstance(value, dict):
        return {snake_case_key(key): snake_case(part) for key, part in value.items()}
    return [snake_case(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", ACCEPTED)
def test_the_chart_knows_every_key(path):
    section = VALUES
    for key in filter(None, path.split(".")):
        section = section[key]
    for part in section if isinstance(section, list) else [section]:
        assert set(part) <= set(ACCEPTED[path].split())


def test_the_chart_is_that_of_the_dagster_that_is_tested():
    for file in (DEPLOY / "kubernetes" / "values.yaml", ROOT / "docs" / "deployment.md"):
        assert re.findall(r"--version ([\d.]+)", file.read_text()) == [version("dagster")]


def test_they_set_what_the_instance_settings_set():
    queue = DAEMON["runCoordinator"]["config"]["queuedRunCoordinator"]
    only_without_a_launcher_of_pods = {
        "max_user_code_failure_retries", "user_code_failure_retry_delay",
    }  # fmt: skip
    expected = INSTANCE["run_coordinator"]["config"]
    assert snake_case(queue) == {
        key: value for key, value in expected.items() if key not in only_without_a_launcher_of_pods
    }
    assert snake_case(DAEMON["runMonitoring"]) == INSTANCE["run_monitoring"]
    assert snake_case(DAEMON["runRetries"]) == INSTANCE["run_retries"]
    assert snake_case(VALUES["telemetry"]) == INSTANCE["telemetry"]
    assert snake_case(VALUES["pythonLogs"]) == INSTANCE["python_logs"]
    assert VALUES["additionalInstanceConfig"]["nux"] == INSTANCE["nux"]
    retention = snake_case(VALUES["retention"])
    assert retention.pop("enabled")
    assert retention == INSTANCE["retention"]
    logs = snake_case(VALUES["computeLogManager"]["config"]["s3ComputeLogManager"])
    assert logs | {"bucket": 0, "prefix": 0} == INSTANCE["compute_logs"]["config"] | {
        "bucket": 0, "prefix": 0,
    }  # fmt: skip
    assert VALUES["computeLogManager"]["type"] == INSTANCE["compute_logs"]["class"]


@pytest.fixture
def cluster():
    """The part of Kubernetes that a launch needs: it accepts jobs and keeps them."""
    jobs = []

    class Api(BaseHTTPRequestHandler):
        def do_POST(self):
            jobs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = json.dumps(jobs[-1]).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", jobs
        server.shutdown()


@pytest.fixture
def instance(server, cluster, tmp_path, monkeypatch):
    """An instance with the launcher that the chart configures from the values."""
    url, _ = cluster
    kubeconfig = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    config = {
        **snake_case({key: part for key, part in LAUNCHER.items() if key != "runK8sConfig"}),
        "run_k8s_config": {
            snake_case_key(key): part for key, part in LAUNCHER["runK8sConfig"].items()
        },
        "service_account_name": "batch-pipeline",
        "job_namespace": "batch-pipeline",
        "dagster_home": "/opt/dagster/dagster_home",
        "instance_config_map": "batch-pipeline-instance",
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
        # The only difference: we are not inside of the cluster.
        "load_incluster_config": False,
        "kubeconfig_file": str(tmp_path / "kubeconfig"),
    }
    launcher = {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config}
    (tmp_path / "dagster.yaml").write_text(
        yaml.safe_dump(
            {name: INSTANCE[name] for name in ("storage", "telemetry", "nux")}
            | {"run_launcher": launcher}
        )
    )
    with server.new_database(migrated=False) as dagster_url:
        monkeypatch.setenv("BATCH_PIPELINE_DAGSTER_DATABASE_URL", dagster_url)
        with dg.DagsterInstance.from_config(str(tmp_path)) as opened:
            yield opened


@pytest.mark.slow
def test_a_run_becomes_a_pod_whose_command_works_the_batch_and_logs_json(
    instance, cluster, pipeline, change, tmp_path
):
    _, jobs = cluster
    batch_id = submit(
        [MEDIA / "fog.webp"],
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    ).batch_id
    settings = change(log_format="json")
    image = "{repository}:{tag}".format(**CODE["image"])
    secrets = [secret["name"] for secret in CODE["envSecrets"]]
    # What a code server that the chart started reports about itself.
    origin = JobPythonOrigin(
        "process_batch",
        RepositoryPythonOrigin(
            executable_path="python",
            code_pointer=ModuleCodePointer("batch_pipeline.definitions", "defs", None),
            container_image=image,
            entry_point=["dagster"],
            container_context={"k8s": {"env_secrets": secrets, "env": CODE["env"]}},
        ),
    )
    run = instance.create_run_for_job(
        build_definitions(settings).resolve_job_def("process_batch"),
        run_config={
            "ops": {"load_batch": {"config": {"batch_id": str(batch_id)}}},
            **logger_config(settings),
        },
        tags={BATCH_TAG: str(batch_id)},
        job_code_origin=origin,
    )
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))

    [job] = jobs
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == image
    assert container["envFrom"] == [{"secretRef": {"name": "batch-pipeline"}}]
    assert container["resources"] == LAUNCHER["resources"]
    assert pod["terminationGracePeriodSeconds"] == 60
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600

    # The pod, as a process: its command, and what the secret would hold.
    variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    done = subprocess.run(
        [sys.executable, "-m", *container["args"]],
        env=os.environ
        | variables
        | {
            "DAGSTER_HOME": str(tmp_path),
            "BATCH_PIPELINE_DATABASE_URL": settings.database_url,
            "BATCH_PIPELINE_STORAGE_URL": pipeline.settings.storage_location,
            # As many as the connections of the test server allow.
            "BATCH_PIPELINE_MAX_RUNS_IN_FLIGHT": "4",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = instance.get_run_by_id(run.run_id)
    assert ended.status == dg.DagsterRunStatus.SUCCESS, done.stderr
    assert batch_row(pipeline.database, batch_id).status == "completed"
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["run_id"] for line in lines if "run_id" in line} == {run.run_id}
    assert all({"timestamp", "level", "logger", "event"} <= set(line) for line in lines)
    [took] = [line for line in lines if line["event"].endswith("took 1 uploads")]
    named = (took["job"], took["step"], took["batch_id"], took["level"])
    assert named == ("process_batch", "load_batch", str(batch_id), "info")


@pytest.mark.parametrize(
    ("pod", "probe"),
    [
        (name, probe)
        for name in ("code", "web", "daemon")
        for probe in ("livenessProbe", "readinessProbe", "startupProbe")
    ],
)
def test_probes_are_such_that_kubernetes_knows(pod, probe):
    found = dict({"code": CODE, "web": WEB, "daemon": DAEMON}[pod].get(probe, {}))
    found.pop("enabled", None)  # for the chart itself
    k8s_model_from_dict(V1Probe, k8s_snake_case_dict(V1Probe, found))
