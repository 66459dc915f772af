"""Steps on Celery workers (extra `celery`)."""
