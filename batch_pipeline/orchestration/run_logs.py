"""Log lines of runs, sensors and schedules on standard error: in colour, or as JSON for machines.

The lines of a run are those of Dagster's own console logger, without the stack traces of failures
that say what is wrong with a file. Metadata of events is only in the event log, because it contains
pictures.
"""

import copy
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import dagster as dg
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict

from batch_pipeline.dagster_internals import context_creation_job, instigation_logger
from batch_pipeline.logs import json_handler
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.settings import LogFormat, Settings

#: What Dagster writes between the message of a step or run that failed and the reason that the
#: step gave. The frames of the stack trace that follows are always the same.
_REASON_GIVEN = "\n\ndagster._core.definitions.events.Failure: "
_STACK_TRACE = "\n\nStack Trace:\n"
_UPLOAD_STEP = re.compile(r"__([0-9a-f]{32})\]$")
_dagsters_loggers = context_creation_job.default_system_loggers  # type: ignore[attr-defined]


@dg.logger(
    config_schema={"level": dg.Field(str, default_value="INFO", description="The lowest level.")},
    description="A JSON object per line: message, level, run, job, step, event type, batch.",
)
def json_lines(context: dg.InitLoggerContext) -> logging.Logger:
    """Write the log lines of a run as JSON."""
    logger = logging.Logger("dagster", context.logger_config["level"])
    logger.addHandler(json_handler(_facts_of_the_run))
    return logger


@dg.logger(
    config_schema={
        "log_level": dg.Field(str, default_value="INFO", description="The lowest level.")
    },
    description="Lines in colour. The failure of a file takes one line.",
)
def console(context: dg.InitLoggerContext) -> logging.Logger:
    """Write the log lines of a run like Dagster, but failures of files without stack traces."""
    config = {"name": "dagster", "log_level": context.logger_config["log_level"]}
    logger: logging.Logger = dg.colored_console_logger(dg.build_init_logger_context(config))
    for handler in logger.handlers:
        handler.setFormatter(_ShortFailures(handler.formatter or logging.Formatter()))
    return logger


class _ShortFailures(logging.Formatter):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        message, given, reason = record.getMessage().partition(_REASON_GIVEN)
        if given:
            record = copy.copy(record)  # the event log gets the same record
            record.msg = f"{message} {reason.partition(_STACK_TRACE)[0]}"
        return self._formatter.format(record)


#: The loggers of our jobs. Both, because the config of a run may name one: a re-executed run has
#: the config of its parent.
LOGGERS = {"console": console, "json_lines": json_lines}


def use_format_in_runs(settings: Settings) -> None:
    """Let runs of our jobs log in the format that is set, unless their config names a logger.

    Otherwise Dagster would use its own logger for a run that somebody launches by hand. It has no
    setting for this. Jobs of other people, in the same process, are not changed.
    """
    chosen = console if settings.log_format is LogFormat.TEXT else json_lines

    def loggers(
        instance: dg.DagsterInstance | None,
    ) -> Sequence[tuple[dg.LoggerDefinition, Mapping[str, object]]]:
        return [(_of_job(chosen, theirs), config) for theirs, config in _dagsters_loggers(instance)]

    context_creation_job.default_system_loggers = loggers  # type: ignore[attr-defined]


def _of_job(chosen: dg.LoggerDefinition, otherwise: dg.LoggerDefinition) -> dg.LoggerDefinition:
    """Return a logger that is `chosen` in runs of our jobs."""

    def start(context: dg.InitLoggerContext) -> logging.Logger:
        if context.job_def and context.job_def.loggers == LOGGERS:
            logger: logging.Logger = chosen(dg.build_init_logger_context())
            return logger
        return otherwise.logger_fn(context)

    return dg.LoggerDefinition(start)


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
