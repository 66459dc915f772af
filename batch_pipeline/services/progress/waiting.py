"""Explains in plain words what an idle batch waits for."""

import re
import uuid
from typing import Any

from sqlalchemy import Select, exists, func, or_, select

from batch_pipeline.database.models import Outage, Upload, UploadBatch
from batch_pipeline.database.readings import HELD, NAME, WAITING, newest_first
from batch_pipeline.database.session import Database
from batch_pipeline.errors import RefusedError
from batch_pipeline.services.error_kinds import OUTAGES
from batch_pipeline.services.health.liveness import (
    Dispatch,
    NeverRunError,
    check_daemon,
    newest_dispatch,
)
from batch_pipeline.services.one_by_one import short_reason
from batch_pipeline.services.pauses import why_paused
from batch_pipeline.services.short_ids import batch_label
from batch_pipeline.settings import Settings
from batch_pipeline.wording import counted, listed

#: A sensor whose newest tick is older than this does not run any more (seconds).
SILENT_SECONDS = 120.0
#: What the sensor says if it finds no upload to launch a run for.
NOTHING_PENDING = "no upload is pending"
#: How Dagster says that its code server is gone. It does not say how to get it back.
_UNREACHABLE = re.compile(r"reach (the )?user code server")


def what_it_waits_for(database: Database, settings: Settings, batch_id: uuid.UUID) -> str:
    """Return why nothing of a batch is being processed.

    The reason is a pause, an outage, other batches, or that Dagster does not run.
    """
    if paused := why_paused(database, settings, batch_id):
        return f"waits, because {paused}"
    with database.transaction() as connection:
        down = connection.execute(_outage(batch_id)).one_or_none()
        is_launched = connection.scalar(_launched(batch_id))
        ahead = connection.execute(_ahead(batch_id)).all()
    if down is not None:
        return f"waits, because {down.error_kind}: {down.error_message}"
    if missing := _missing_daemon(settings):
        return missing
    dispatch = newest_dispatch(settings)
    if dispatch and (stuck := _stuck(dispatch)):
        return f"waits, because {stuck}; `batch-pipeline doctor` shows more"
    said = "waits for its run to be launched"
    if is_launched:
        said = "waits for its run, which is launched but has not begun"
    elif ahead:
        uploads = counted(sum(batch.uploads for batch in ahead), "upload")
        batches = counted(len(ahead), "batch", "batches")
        labels = [batch_label(batch.id, batch.name) for batch in ahead]
        said = f"waits behind {uploads} of {batches}: {listed(labels)}"
    if dispatch is None:
        return said
    return f"{said}; {dispatch.runs_in_flight} of {settings.max_runs_in_flight} runs in flight"


def why_batches_wait(settings: Settings) -> str:
    """Return why no run is launched now; empty if the last tick of the sensor launched one."""
    dispatch = newest_dispatch(settings)
    if dispatch is None:  # no Dagster has used this database yet
        return _missing_daemon(settings)
    if dispatch.age > SILENT_SECONDS and (missing := _missing_daemon(settings)):
        return missing
    # A batch may have been submitted after the tick, so this is no reason why it waits.
    said = dispatch.said if dispatch.said != NOTHING_PENDING else None
    return _stuck(dispatch) or said or ""


def why_tick_failed(message: str) -> str:
    """Return in one line why a tick failed, from the message that Dagster keeps."""
    if _UNREACHABLE.search(message):
        return (
            "Dagster's code server does not answer: restart it, or press Reload in the UI under "
            "Deployment"
        )
    return short_reason(message)


def _outage(batch_id: uuid.UUID) -> Select[*tuple[Any, ...]]:
    """Select the outage that keeps uploads of a batch waiting; none if it is over."""
    # The upload keeps its error until it is processed. A wrong setting has no row in `outages`.
    lasts = or_(
        Upload.error_kind == "configuration", exists().where(Outage.kind == Upload.error_kind)
    )
    return (
        select(Upload.error_kind, Upload.error_message)
        .where(Upload.batch_id == batch_id, WAITING, Upload.error_kind.in_(OUTAGES), lasts)
        .order_by(newest_first(Upload.updated_at))
        .limit(1)
    )


def _launched(batch_id: uuid.UUID) -> Select[*tuple[Any, ...]]:
    return select(exists().where(Upload.batch_id == batch_id, WAITING, Upload.slice.is_not(None)))


def _ahead(batch_id: uuid.UUID) -> Select[*tuple[Any, ...]]:
    """Count uploads that runs hold, by other batch; most of them first."""
    return (
        select(UploadBatch.id, NAME, func.count().label("uploads"))
        .select_from(Upload)
        .join(UploadBatch, UploadBatch.id == Upload.batch_id)
        .where(HELD, UploadBatch.id != batch_id)
        .group_by(UploadBatch.id)
        .order_by(func.count().desc(), UploadBatch.id)
    )


def _stuck(dispatch: Dispatch) -> str:
    """Return why no run is launched, if the sensor is the reason; else empty."""
    if dispatch.age > SILENT_SECONDS:
        return (
            f"the sensor pending_batches has not run for {dispatch.age / 60:.0f} minutes: it is "
            "switched off, its code location cannot be loaded, or Dagster was just started or "
            "stopped"
        )
    if dispatch.error:
        return f"the sensor pending_batches fails: {why_tick_failed(dispatch.error)}"
    return ""


def _missing_daemon(settings: Settings) -> str:
    """Return why nothing can be launched; empty if a daemon runs, or if that is not known."""
    asked = "nothing is being processed: is Dagster running?"
    try:
        said = check_daemon(settings)
    except NeverRunError:
        has_run = False
    except RefusedError as error:
        return f"{asked} {error}; `batch-pipeline doctor` shows more"
    else:
        has_run = "does not exist" not in said  # Dagster makes its database when it first starts
    if has_run:
        return ""
    return (
        f"{asked} It has never run on this database: start it with `make dev`; `batch-pipeline "
        "doctor` shows more"
    )
