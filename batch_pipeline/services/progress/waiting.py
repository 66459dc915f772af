"""Explains in plain words what an idle batch waits for."""

import uuid

from sqlalchemy import and_, func, or_, select

from batch_pipeline.database.models import IN_WORK, Upload
from batch_pipeline.database.readings import WAITING
from batch_pipeline.database.session import Database
from batch_pipeline.errors import RefusedError
from batch_pipeline.services.error_kinds import OUTAGES
from batch_pipeline.services.liveness import check_daemon
from batch_pipeline.services.pauses import why_paused
from batch_pipeline.settings import Settings


def what_it_waits_for(database: Database, settings: Settings, batch_id: uuid.UUID) -> str:
    """Return why nothing of a batch is being processed.

    The reason is a pause, an outage, other batches, or a Dagster that does not run.
    """
    if paused := why_paused(database, settings, batch_id):
        return f"waits, because {paused}"
    held = or_(Upload.owner_run_id.is_not(None), Upload.processing_status.in_(IN_WORK))
    outage = (
        select(Upload.error_kind, Upload.error_message)
        .where(Upload.batch_id == batch_id, WAITING, Upload.error_kind.in_(OUTAGES))
        .order_by(Upload.updated_at.desc())
        .limit(1)
    )
    behind = select(func.count(), func.count(Upload.batch_id.distinct())).where(
        and_(held, Upload.batch_id.is_distinct_from(batch_id))
    )
    with database.transaction() as connection:
        down = connection.execute(outage).one_or_none()
        uploads, batches = connection.execute(behind).one()
    if down is not None:
        return f"waits, because {down.error_kind}: {down.error_message}"
    if missing := _missing_daemon(settings):
        return f"nothing is being processed: is Dagster running? {missing}"
    if uploads:
        of = "1 other batch" if batches == 1 else f"{batches} other batches"
        return f"waits behind {uploads} upload{'' if uploads == 1 else 's'} of {of}"
    return "waits for its run to begin; in the UI, Automation, pending_batches says why it waits"


def _missing_daemon(settings: Settings) -> str:
    """Return why nothing can be launched; empty if a daemon runs, or if that is not known."""
    try:
        said = check_daemon(settings)
    except RefusedError as error:
        return f"{error}; `batch-pipeline doctor` tells more"
    if "does not exist" in said:  # Dagster makes its database when it first starts
        return "it has never run on this database: `batch-pipeline doctor` tells more"
    return ""
