"""What Dagster's Helm chart makes of ``deploy/kubernetes/values.yaml``, as far as runs see it.

This module imitates the templates of the chart, because the tests have no Helm. docs/deployment.md
says when it was last compared with what Helm renders.
"""

import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
VALUES = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
[CODE] = VALUES["dagster-user-deployments"]["deployments"]
WEB, DAEMON = VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
IMAGE = "{repository}:{tag}".format(**CODE["image"])
RELEASE, NAMESPACE = "media", "batch-pipeline"

_ANYTHING = {"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
#: What the service account of the launcher may do, by resource.
ROLE = {
    "jobs": _ANYTHING,
    "jobs/status": {"get", "list", "watch"},
    "pods": _ANYTHING,
    "events": _ANYTHING,
    "pods/log": {"get", "list", "watch"},
    "pods/status": {"get", "list", "watch"},
}


def snake_case_key(key: str) -> str:
    """Write a key like the templates; one of them stays as it is."""
    return key if key == "applyLimitPerUniqueValue" else re.sub("[A-Z]", r"_\g<0>", key).lower()


def snake_case(value: Any) -> Any:
    """Write a value like the templates."""
    if isinstance(value, dict):
        return {snake_case_key(key): snake_case(part) for key, part in value.items()}
    return [snake_case(part) for part in value] if isinstance(value, list) else value


def run_launcher() -> dict[str, Any]:
    """Return ``run_launcher`` of the instance settings."""
    plain = ("loadInclusterConfig", "imagePullPolicy", "resources", "envVars", "securityContext",
             "volumes", "volumeMounts")  # fmt: skip
    config = {snake_case_key(key): LAUNCHER[key] for key in plain if key in LAUNCHER}
    config["run_k8s_config"] = {
        snake_case_key(key): part for key, part in LAUNCHER["runK8sConfig"].items()
    }
    config["env_secrets"] = [secret["name"] for secret in LAUNCHER.get("envSecrets", ())]
    if LAUNCHER["failPodOnRunFailure"]:
        config["fail_pod_on_run_failure"] = True
    config |= {
        "job_namespace": NAMESPACE,
        "service_account_name": f"{RELEASE}-dagster",
        "instance_config_map": f"{RELEASE}-dagster-instance",
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
        "dagster_home": "/opt/dagster/dagster_home",
    }
    return {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config}


def container_context() -> dict[str, Any]:
    """Return what the code server says about the pods of its runs; the launcher obeys it."""
    if not CODE["includeConfigInLaunchedRuns"]["enabled"]:
        return {}
    account = f"{RELEASE}-dagster-user-deployments-user-deployments"
    context = {
        "env": CODE["env"],
        "env_secrets": [secret["name"] for secret in CODE["envSecrets"]],
        "image_pull_policy": CODE["image"]["pullPolicy"],
        "namespace": NAMESPACE,
        "resources": CODE["resources"],
        "run_k8s_config": {"pod_spec_config": {"automount_service_account_token": True}},
        "service_account_name": account,
    }
    return {"k8s": context}


def probes(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the probes that the chart renders; those that are not enabled are left out."""
    found = {}
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = dict(pod.get(name, {}))
        # Only these need `enabled`; the chart renders any liveness probe that is set.
        asks = name == "startupProbe" or (pod is CODE and name == "readinessProbe")
        if probe and (probe.pop("enabled", False) or not asks):
            found[name] = probe
    return found
