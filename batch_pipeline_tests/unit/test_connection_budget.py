"""All processes of a deployment fit under PostgreSQL's limit of connections."""

import itertools

import pytest

from batch_pipeline.database import connection_budget
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.settings import Settings


def settings(**values):
    return Settings(_env_file=None, **values)


def test_the_maximum_of_all_processes_fits():
    celery = ({}, {"celery_broker_url": "amqp://b", "celery_processes": 6})
    least, beside = connection_budget.LEAST_POOL, connection_budget.BESIDE_UPLOADS
    for case in itertools.product((97, 197, 497), (1, 2, 4, 7, 16), (1, 4, 32, 256), celery):
        limit, runs, uploads, more = case
        chosen = settings(max_runs_in_flight=runs, max_concurrent_uploads=uploads, **more)
        try:
            pool = connection_budget.pool_size(chosen, limit)
        except ConfigurationError:
            assert connection_budget.worst_case(chosen, least) > limit, case
        else:
            assert connection_budget.worst_case(chosen, pool) <= limit, case
            assert least <= pool <= uploads + beside, case


def test_by_default_every_upload_in_progress_has_a_connection():
    assert connection_budget.pool_size(settings(), 97) == settings().max_concurrent_uploads + 2


def test_processes_of_celery_workers_count_as_much_as_run_workers():
    pool = connection_budget.pool_size(settings(max_runs_in_flight=4), 197)
    chosen = settings(
        max_runs_in_flight=4, celery_broker_url="redis://broker/0", celery_processes=3
    )
    as_runs = settings(max_runs_in_flight=7)
    assert connection_budget.worst_case(chosen, pool) == connection_budget.worst_case(as_runs, pool)
    with pytest.raises(ConfigurationError, match="BATCH_PIPELINE_CELERY_PROCESSES=40 needs up to"):
        connection_budget.pool_size(
            settings(celery_broker_url="redis://broker/0", celery_processes=40), 197
        )


def test_more_runs_than_fit_are_refused_with_what_to_do():
    with pytest.raises(ConfigurationError) as raised:
        connection_budget.pool_size(settings(max_runs_in_flight=50), 97)
    assert "BATCH_PIPELINE_MAX_RUNS_IN_FLIGHT=50" in str(raised.value)
    assert "PostgreSQL accepts 97" in str(raised.value)
    assert "raise max_connections" in str(raised.value)
