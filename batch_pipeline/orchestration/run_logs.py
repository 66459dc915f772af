"""Log lines of runs, sensors and schedules on standard error: in colour, or as JSON for machines.

The lines of a run are the same as those of Dagster's own console logger. Metadata of events is only
in the event log, because it contains pictures.
"""

import logging
import re
import uuid
from contextlib import AbstractContextManager
from typing import Any

import dagster as dg
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict

from batch_pipeline.dagster_internals import instigation_logger
from batch_pipeline.logs import json_handler
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.settings import LogFormat, Settings

_JSON_LOGGER = "json_lines"
_UPLOAD_STEP = re.compile(r"__([0-9a-f]{32})\]$")


@dg.logger(
    config_schema={"level": dg.Field(str, default_value="INFO", description="The least severe.")},
    description="A JSON object per line: message, level, run, job, step, event type, batch.",
)
def json_lines(context: dg.InitLoggerContext) -> logging.Logger:
    """Write the log lines of a run as JSON."""
    logger = logging.Logger("dagster", context.logger_config["level"])
    logger.addHandler(json_handler(_facts_of_the_run))
    return logger


def build_loggers(settings: Settings) -> dict[str, dg.LoggerDefinition]:
    """Return the logger for the log format in the settings; none for text, which is Dagster's."""
    return {} if settings.log_format is LogFormat.TEXT else {_JSON_LOGGER: json_lines}


def logger_config(settings: Settings) -> dict[str, Any]:
    """Return run config that chooses the logger; if it is empty, Dagster uses its own."""
    return {} if settings.log_format is LogFormat.TEXT else {"loggers": {_JSON_LOGGER: {}}}


def write_ticks_as_json(settings: Settings) -> None:
    """Write the lines of this process's sensors and schedules in the format that is set.

    Dagster has no setting for their logger. In the UI their lines do not change.
    """
    if settings.log_format is LogFormat.TEXT:
        return

    def json_console(name: str, level: str | int) -> logging.Logger:
        logger = logging.Logger(name, level)
        logger.addHandler(json_handler(_facts_of_the_run))
        return logger

    instigation_logger.create_console_logger = json_console  # type: ignore[attr-defined]


def naming(run: dg.DagsterRun, **ids: uuid.UUID) -> AbstractContextManager[None]:
    """Add the ids of a run, its batch and more to every JSON line that this thread writes."""
    batch_id = run.tags.get(BATCH_TAG)
    named = {"run_id": run.run_id} | ({"batch_id": batch_id} if batch_id else {})
    return bound_contextvars(**named, **{name: str(value) for name, value in ids.items()})


def _facts_of_the_run(_: Any, __: str, event: EventDict) -> EventDict:
    facts = getattr(event["_record"], "dagster_meta", None)
    if facts is None:
        return event
    event["event"] = facts["orig_message"]
    tags = facts.get("job_tags") or {}
    dagster_event = facts.get("dagster_event")
    named = {
        "run_id": facts.get("run_id"),
        "job": facts.get("job_name"),
        "step": facts.get("step_key"),
        "event_type": dagster_event.event_type_value if dagster_event else None,
        "batch_id": tags.get(BATCH_TAG),
        "upload_id": _upload_of(facts.get("step_key")),
        "instigator": facts.get("name"),
    }
    event.update({name: value for name, value in named.items() if value})
    return event


def _upload_of(step_key: str | None) -> str | None:
    """Return the id of the upload that a step processes: the last part of its mapping key."""
    found = _UPLOAD_STEP.search(step_key or "")
    return str(uuid.UUID(found.group(1))) if found else None
