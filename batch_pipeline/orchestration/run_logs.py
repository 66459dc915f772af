"""What a run says on standard error: in colour for people, or a JSON object a line for machines.

The lines are those of Dagster's own console logger. Metadata of events stays in the event log: it
holds pictures.
"""

import logging
from typing import Any

import dagster as dg
from structlog.typing import EventDict

from batch_pipeline.logs import json_handler
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.settings import LogFormat, Settings

_JSON_LOGGER = "json_lines"


@dg.logger(
    config_schema={"level": dg.Field(str, default_value="INFO", description="The least severe.")},
    description="A JSON object per line: message, level, run, job, step, type of the event, batch.",
)
def json_lines(context: dg.InitLoggerContext) -> logging.Logger:
    """Write what a run says as JSON."""
    logger = logging.Logger("dagster", context.logger_config["level"])
    logger.addHandler(json_handler(_facts_of_the_run))
    return logger


def build_loggers(settings: Settings) -> dict[str, dg.LoggerDefinition]:
    """Offer the logger that the settings ask for; Dagster's own if that is text."""
    return {} if settings.log_format is LogFormat.TEXT else {_JSON_LOGGER: json_lines}


def logger_config(settings: Settings) -> dict[str, Any]:
    """Choose the logger, in the config of a run; without it Dagster takes its own."""
    return {} if settings.log_format is LogFormat.TEXT else {"loggers": {_JSON_LOGGER: {}}}


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
    }
    event.update({name: value for name, value in named.items() if value})
    return event
