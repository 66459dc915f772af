"""Alert rules and dashboard use existing metrics, and a real Prometheus accepts them."""

import json
import re
import runpy
import subprocess
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import yaml
from sqlalchemy import func, insert, text

from batch_pipeline.database.models import ModelCall, ModelCallSlots, ModelPause, WorkPause
from batch_pipeline.demo import free_port
from batch_pipeline.services.reports.metrics import METRICS
from batch_pipeline.testing.records import add_batch
from batch_pipeline_tests.integration.conftest import program
from batch_pipeline_tests.integration.console import COMMAND
from batch_pipeline_tests.patience import wait_until

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DRAWN = [
    target["expr"]
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    for target in panel["targets"]
]

#: What KEDA asks Prometheus in the example for Kubernetes.
SCALED_BY = [
    trigger["metadata"]["query"]
    for document in yaml.safe_load_all((ROOT / "deploy/kubernetes/autoscaling.yaml").read_text())
    if document["kind"] == "ScaledObject"
    for trigger in document["spec"]["triggers"]
]


def test_the_dashboard_is_what_its_script_writes():
    script = runpy.run_path(str(ROOT / "scripts" / "write_dashboard.py"))
    assert (MONITORING / "dashboard.json").read_text() == script["reference"](), (
        "run scripts/write_dashboard.py"
    )


def test_alerts_and_dashboard_name_metrics_that_exist_and_the_dashboard_shows_all():
    def named(expressions: list[str]) -> set[str]:
        return set(re.findall(r"batch_pipeline_\w+", " ".join(expressions)))

    exist = {metric.name for metric in METRICS}
    assert named([rule["expr"] for rule in RULES]) <= exist
    assert named(DRAWN) == exist
    assert SCALED_BY
    assert named(SCALED_BY) <= exist


@pytest.mark.slow
def test_each_alert_fires_when_it_should_and_only_then():
    checked = subprocess.run(
        [program("promtool"), "test", "rules", HERE / "alerts_test.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tried = set(re.findall(r"alertname: (\w+)", (HERE / "alerts_test.yaml").read_text()))
    assert tried == {rule["alert"] for rule in RULES}


@pytest.fixture
def prometheus(database, settings, tmp_path) -> Iterator[Callable[[str], Any]]:
    """Asks a Prometheus that scrapes the command and evaluates the rules."""
    served, port = free_port(), free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "scrape_configs": [
            {
                "job_name": "batch_pipeline",
                "static_configs": [{"targets": [f"127.0.0.1:{served}"]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    environment = {
        "PATH": "/usr/bin:/bin",
        "BATCH_PIPELINE_HOME": str(settings.home),
        "BATCH_PIPELINE_DATABASE_URL": settings.database_url,
    }
    command = [
        program("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen(
            [COMMAND, "metrics", "--serve", str(served)], env=environment, **quiet
        ) as ours,
        subprocess.Popen(command, **quiet) as theirs,
    ):

        def ask(path: str) -> Any:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}") as answer:
                    return json.load(answer)["data"]
            except URLError:
                assert (ours.poll(), theirs.poll()) == (None, None)
                return None

        yield ask
        ours.terminate()
        theirs.terminate()


@pytest.mark.slow
def test_a_real_prometheus_scrapes_evaluates_and_answers_every_panel(prometheus, database):
    now = func.now()
    add_batch(
        database,
        [
            {"error_kind": "model_timeout"},
            {
                "processing_status": "completed",
                "updated_at": now,
                "stage_seconds": {"description": 1.0},
            },
        ],
        status="processing",
    )
    of_server = {"server": "http://gpu1", "kind": "vision"}
    later = now + text("interval '1 hour'")
    with database.transaction() as connection:
        connection.execute(
            insert(ModelCallSlots).values(
                **of_server, holder=uuid.uuid4(), held=1, wanted=2, since=now, leased_until=later
            )
        )
        connection.execute(
            insert(ModelCall).values(
                id=uuid.uuid4(), kind="vision", model="m", tokens_in=9, tokens_out=1, seconds=1.0
            )
        )
        connection.execute(insert(ModelPause).values(**of_server, not_before=later, reason="429"))
        connection.execute(insert(WorkPause).values(scope="server", target="http://gpu1"))

    def evaluated() -> bool:
        groups = (prometheus("rules") or {}).get("groups", [])
        return bool(groups) and all(
            rule["lastEvaluation"] > "1" and rule["health"] == "ok" for rule in groups[0]["rules"]
        )

    wait_until(evaluated, "every rule is evaluated without an error")

    def drawn(expression: str) -> Any:
        query = urllib.parse.urlencode({"query": expression})
        return (prometheus(f"query?{query}") or {}).get("result")

    for expression in [*DRAWN, *SCALED_BY]:
        wait_until(lambda: drawn(expression), f"a value of {expression}")  # noqa: B023 - at once
