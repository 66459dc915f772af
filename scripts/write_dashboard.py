#!/usr/bin/env python3
"""Write deploy/monitoring/dashboard.json, the dashboard for Grafana; a test keeps it up to date."""

import json
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[1] / "deploy" / "monitoring" / "dashboard.json"
_WIDTH, _HEIGHT, _COLUMNS = 12, 8, 2

#: Title, unit, and the graphs: expression and legend of each.
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Open uploads", "short", (("sum by (state) (batch_pipeline_open_uploads)", "{{state}}"),)),
    ("Oldest waiting upload", "s", (("max(batch_pipeline_oldest_pending_seconds)", "waits"),)),
    (
        "Ended in the last five minutes",
        "short",
        (("sum by (state) (batch_pipeline_ended_uploads)", "{{state}}"),),
    ),
    (
        "Errors",
        "short",
        (("sum by (kind, state) (batch_pipeline_upload_errors)", "{{kind}} {{state}}"),),
    ),
    (
        "Seconds per stage, 95th percentile",
        "s",
        (('max by (stage) (batch_pipeline_stage_seconds{quantile="0.95"})', "{{stage}}"),),
    ),
    (
        "Calls to model servers",
        "short",
        (
            (
                "sum by (server, kind, state) (batch_pipeline_model_calls)",
                "{{server}} {{kind}} {{state}}",
            ),
        ),
    ),
    ("Open batches", "short", (("sum by (status) (batch_pipeline_open_batches)", "{{status}}"),)),
    (
        "Cost of model calls in the last five minutes",
        "short",
        (("sum by (model, what) (batch_pipeline_model_usage)", "{{model}} {{what}}"),),
    ),
    (
        "Pauses that model servers ask for",
        "s",
        (("max by (server, kind) (batch_pipeline_model_pause_seconds)", "{{server}} {{kind}}"),),
    ),
    (
        "Paused by a person",
        "s",
        (("max by (scope, target) (batch_pipeline_paused_seconds)", "{{scope}} {{target}}"),),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it; Grafana then asks for the data source."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "title": "batch_pipeline",
        "uid": "batch-pipeline",
        "tags": ["batch_pipeline"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [
            {
                "id": number + 1,
                "type": "timeseries",
                "title": title,
                "datasource": source,
                "gridPos": {
                    "x": _WIDTH * (number % _COLUMNS),
                    "y": _HEIGHT * (number // _COLUMNS),
                    "w": _WIDTH,
                    "h": _HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + n), "expr": expression, "legendFormat": legend}
                    for n, (expression, legend) in enumerate(drawn)
                ],
            }
            for number, (title, unit, drawn) in enumerate(PANELS)
        ],
    }


def reference() -> str:
    """Render the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(reference(), encoding="utf-8")
