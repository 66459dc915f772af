"""The values for Dagster's Helm chart: known keys, valid pods, and no contradictions.

The tests need neither Helm nor a cluster. The keys that the chart accepts are listed below; they
come from its schema. Their effect on runs is in `test_kubernetes_pods.py`.
"""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict
from kubernetes.client import V1Deployment, V1Probe, V1Service

from .chart import CODE, DAEMON, DEPLOY, IMAGE, VALUES, WEB, probes, snake_case

ROOT = Path(__file__).parents[3]
INSTANCE = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())

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


def test_the_values_set_what_the_instance_settings_set():
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


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (CODE, {"livenessProbe", "readinessProbe", "startupProbe"}),
        (WEB, {"livenessProbe", "readinessProbe", "startupProbe"}),
        (DAEMON, {"livenessProbe", "startupProbe"}),
    ],
    ids=["code server", "web server", "daemon"],
)
def test_each_service_has_probes_that_kubernetes_knows(pod, expected):
    found = probes(pod)
    assert set(found) == expected
    for probe in found.values():
        k8s_model_from_dict(V1Probe, k8s_snake_case_dict(V1Probe, probe))


def test_the_example_of_autoscaling_has_the_image_and_the_secret_of_the_values():
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "autoscaling.yaml").read_text())
    found = {document["kind"]: document for document in documents}
    for model in (V1Deployment, V1Service):
        k8s_model_from_dict(model, k8s_snake_case_dict(model, found[model.__name__[2:]]))
    [container] = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == IMAGE
    assert container["envFrom"] == [{"secretRef": secret} for secret in CODE["envSecrets"]]
    assert found["Service"]["spec"]["selector"].items() <= (
        found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    )


def test_the_example_of_autoscaling_keeps_the_servers_while_there_are_no_metrics():
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "autoscaling.yaml").read_text())
    [scaled] = [document for document in documents if document["kind"] == "ScaledObject"]
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false"  # KEDA's default: they count as 0
