"""Log lines for machines: a JSON object each, as Dagster's own ``--log-format json`` writes them.

Which it is says ``BATCH_PIPELINE_LOG_FORMAT``. What runs say is turned into lines by
``orchestration/run_logs.py``; the rest goes through Python's ``logging``, and so through here.
"""

import logging

import structlog
from structlog.typing import Processor

#: The logger above all of ours.
OURS = "batch_pipeline"


def json_formatter(*additions: Processor) -> logging.Formatter:
    """Render records as JSON: ``timestamp``, ``level``, ``logger``, ``event``, and additions."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *additions,
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )


def json_handler(*additions: Processor) -> logging.Handler:
    """Write records to standard error, a JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(json_formatter(*additions))
    return handler


def write_json_lines() -> None:
    """Let everything of ours that is logged in this process be JSON; safe to call again."""
    ours = logging.getLogger(OURS)
    if not ours.handlers:
        ours.addHandler(json_handler())
        ours.propagate = False
