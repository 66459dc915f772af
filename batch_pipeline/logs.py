"""Log lines as JSON objects for machines, like those of Dagster's own ``--log-format json``.

``BATCH_PIPELINE_LOG_FORMAT`` sets the format. ``orchestration/run_logs.py`` writes the lines of
runs, sensors and schedules. All other lines go through Python's ``logging``, and so through this
module. Values that are bound with ``structlog.contextvars`` are in every line.
"""

import logging
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from batch_pipeline.masking import masked
from batch_pipeline.settings import LogFormat, Settings


def json_formatter(*additions: Processor) -> logging.Formatter:
    """Render records as JSON: ``timestamp``, ``level``, ``logger``, ``event``, and additions."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.contextvars.merge_contextvars,
            *additions,
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _without_secrets,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )


def _without_secrets(_: Any, __: str, event: EventDict) -> EventDict:
    return {
        name: masked(value) if isinstance(value, str) else value for name, value in event.items()
    }


def json_handler(*additions: Processor) -> logging.Handler:
    """Write records to standard error, one JSON object per line."""
    handler = logging.StreamHandler()
    handler.setFormatter(json_formatter(*additions))
    return handler


def use_format(settings: Settings) -> None:
    """Set the log format of this process: for our lines, those of libraries, and warnings."""
    if settings.log_format is LogFormat.TEXT:
        return
    logging.captureWarnings(True)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    for handler in root.handlers:
        handler.setFormatter(json_formatter())
        handler.addFilter(_is_not_of_dagster)


def say_each_line_once(settings: Settings) -> None:
    """Set up the root logger of a Dagster process before any other code does.

    dagster-postgres reports an outage by `logging.warning`. If the root logger has no handler, this
    call adds one for all lines, and each later line of Dagster is printed twice.
    """
    use_format(settings)
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
        handler.addFilter(_is_not_of_dagster)
        root.addHandler(handler)


def _is_not_of_dagster(record: logging.LogRecord) -> bool:
    """Return false for Dagster's lines, which Dagster writes itself (`--log-format`)."""
    return not record.name.startswith("dagster")
