"""The Celery application of workers, configured from the settings.

::

    celery -A batch_pipeline.orchestration.celery.app worker --queues dagster --concurrency 4

A worker needs the same settings as the run's host, but not the disk of that host.
"""

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.orchestration.celery.broker import OPTIONS, result_backend
from batch_pipeline.orchestration.celery.dagster_internals import create_task, make_app
from batch_pipeline.settings import load_settings

_broker = load_settings().celery_broker_url
if not _broker:
    raise ConfigurationError(
        "BATCH_PIPELINE_CELERY_BROKER_URL is empty; a worker needs the URL of its broker, "
        "such as redis://broker.example:6379/0"
    )

app = make_app(
    {
        "broker": _broker,
        "backend": result_backend(_broker),
        "config_source": OPTIONS,
        # Loaded once, before the worker makes its processes, and not in each of them.
        "include": ["batch_pipeline.definitions"],
    }
)
execute_plan = create_task(app)
