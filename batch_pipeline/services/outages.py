"""Decides whether a service is down, or whether one upload is the cause of an error.

A file without read permission and a picture that a model refuses raise the same errors as an
outage. An outage affects other uploads too. So this module tries other uploads before it declares
the service down. If only one upload is affected, the error is replaced by the one in its
``if_alone``.

If a model server goes down during calls, one of these calls may be the cause. All uploads whose
calls were interrupted are suspects. Over all workers, only one suspect is sent at a time, after a
question with a known answer. A suspect that is not the cause then gets its answer. If the server
repeatedly dies during calls for one upload while it answers others, that upload fails. If the
server stays down or also dies during the known question, no upload is the cause, and nothing is
counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import func, literal_column, select

from batch_pipeline.database.models import Upload, UploadStatus
from batch_pipeline.database.readings import owner
from batch_pipeline.database.session import AnyRow
from batch_pipeline.errors import (
    PermanentError,
    PipelineError,
    ServiceDownError,
    UploadError,
    WorkPausedError,
)
from batch_pipeline.model_servers.base import (
    WORK_PAUSED,
    Caller,
    EmbeddingModel,
    VisionModel,
    require_unpaused,
)
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.storage import Storage

#: An upload fails after this many server deaths during its calls, if the server answered other
#: calls in between.
MAX_SERVER_DEATHS = 4
#: Name of the call slot of suspects; there is one for all servers.
_ALL_SERVERS = ["model servers"]
#: How many other uploads are tried: of the same batch, and of those completed last.
_SIBLINGS, _COMPLETED = 10, 5


def own_fault(pipeline: Pipeline, error: PipelineError, upload: AnyRow) -> UploadError | None:
    """Return the error of an upload that is itself the cause, or None for an outage.

    Args:
        pipeline: the pipeline whose storage is tried.
        error: the error that ended the processing.
        upload: columns `STARTED`.
    """
    if not isinstance(error, ServiceDownError) or error.if_alone is None:
        return None
    if server_died(error):
        return error.if_alone if upload.server_deaths + 1 >= MAX_SERVER_DEATHS else None
    try:
        serves_others = _storage_serves(pipeline.storage, _others(pipeline, upload))
    except ServiceDownError:
        return None
    return error.if_alone if serves_others else None


def server_died(error: PipelineError | None) -> bool:
    """Return whether an outage began during a call to a model."""
    return (
        isinstance(error, ServiceDownError)
        and error.kind in {"model_server_down", "model_fails_all"}
        and error.if_alone is not None
    )


@contextmanager
def apart_from_suspects(
    pipeline: Pipeline,
    upload: AnyRow,
    model: VisionModel | EmbeddingModel,
    caller: Caller,
) -> Iterator[None]:
    """Surround the model calls of an upload; suspects make their calls one at a time.

    Raises:
        ServiceDownError: no server answers the known question either.
        WorkCancelledError: the caller's work is no longer wanted.
        WorkPausedError: a person has paused the work, or every server.
    """
    # If a server restarts at once, its death looks like an error of each broken call.
    if not upload.server_deaths and upload.error_kind != "model_server_error":
        yield
        return

    def all_servers() -> list[str]:
        require_unpaused(caller.paused)
        return _ALL_SERVERS

    with pipeline.suspects.taken(all_servers, caller.cancelled):
        if upload.server_deaths and (outage := _outage_of(model, caller)):
            raise outage
        yield


def _outage_of(model: VisionModel | EmbeddingModel, caller: Caller) -> ServiceDownError | None:
    # A wrong answer is not an outage, so `model_unsuitable` does not count as a failure here.
    tried = model.try_out(caller)
    if tried and all(found.kind == WORK_PAUSED for found in tried):
        raise WorkPausedError(tried[0].detail)
    failed = [found for found in tried if not (found.ok or found.kind == "model_unsuitable")]
    if not failed or len(failed) < len(tried):
        return None
    return ServiceDownError("model_server_down", "; ".join(found.detail for found in failed))


def _others(pipeline: Pipeline, upload: AnyRow) -> list[AnyRow]:
    columns = select(Upload.id, owner(Upload.user_id), Upload.file_path).where(
        Upload.id != upload.id,
        Upload.file_path.is_not(None),  # an upload API may leave it empty
    )
    siblings = columns.where(Upload.batch_id == upload.batch_id).order_by(func.random())
    completed = columns.where(
        Upload.processing_status == UploadStatus.COMPLETED,
        Upload.updated_at < literal_column("'infinity'"),  # uploads of unknown age would come first
    )
    with pipeline.database.transaction() as connection:
        return [
            *connection.execute(completed.order_by(Upload.updated_at.desc()).limit(_COMPLETED)),
            *connection.execute(siblings.limit(_SIBLINGS)),
        ]


def _storage_serves(storage: Storage, others: list[AnyRow]) -> bool:
    """Return whether a test file and the file of at least one other upload can be used.

    If the storage refuses all other uploads, too, this upload is not the cause. Without other
    uploads, the test file decides.
    """
    storage.check()
    refused = False
    for other in others:
        try:
            with storage.open(other.file_path) as file:
                file.read(1)
            storage.check(f"{other.user_id}/{other.id}")
        except PermanentError:
            continue  # a missing file proves nothing
        except (ServiceDownError, OSError):
            refused = True
        else:
            return True
    return not refused
