"""Log lines for machines: a JSON object each, as Dagster's own ``--log-format json`` writes them.

Which it is says ``BATCH_PIPELINE_LOG_FORMAT``. What runs say is turned into lines by
``orchestration/run_logs.py``; the rest goes through Python's ``logging``, and so through here.
"""

import logging

import structlog
from structlog.typing import Processor

from batch_pipeline.settings import LogFormat, Settings

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


def use_format(settings: Settings) -> None:
    """Log what is ours in this process, and Python's warnings, as the settings say."""
    if settings.log_format is LogFormat.TEXT:
        return
    logging.captureWarnings(True)
    for name in (OURS, "py.warnings"):
        logger = logging.getLogger(name)
        if not logger.handlers:  # this may be called again
            logger.addHandler(json_handler())
            logger.propagate = False
