"""Log lines for machines: a JSON object each, as Dagster's own ``--log-format json`` writes them.

Which it is says ``BATCH_PIPELINE_LOG_FORMAT``. What runs, sensors and schedules say is turned into
lines by ``orchestration/run_logs.py``; the rest goes through Python's ``logging``, and so through
here. What is bound with ``structlog.contextvars`` stands in every line.
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
    """Write records to standard error, a JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(json_formatter(*additions))
    return handler


def use_format(settings: Settings) -> None:
    """Log in this process as the settings say: what is ours, what libraries say, and warnings."""
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
    """Set the root logger of one of Dagster's processes up, before anybody else does.

    dagster-postgres speaks of an outage by `logging.warning`. That gives a root logger that has no
    handler one for everything, and from then on each line of Dagster's is printed twice.
    """
    use_format(settings)
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
        handler.addFilter(_is_not_of_dagster)
        root.addHandler(handler)


def _is_not_of_dagster(record: logging.LogRecord) -> bool:
    """Dagster writes its own lines, as `--log-format` says."""
    return not record.name.startswith("dagster")
