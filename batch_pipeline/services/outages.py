"""Whether a service is down, or one upload only looks as if it were.

A file that may not be read and a picture that a model refuses raise the same errors as an outage.
An outage is what others feel, too: whoever raises such an error over one upload says in
``if_alone`` what it would be otherwise, and here others are tried before the whole service is
called down.

A model server that goes down in the middle of a call may have died of it, or of anything else. All
whose calls it broke off are suspects. Of them one is asked at a time, over all workers, after a
question with a known answer: who is innocent is answered then, and what the server dies of again
and again, while it answers others, fails with that reason. A server that stays away, or that dies
of the known question too, has nothing to do with any upload, and nothing is counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import func, select

from batch_pipeline.database.models import Upload, UploadStatus
from batch_pipeline.database.session import AnyRow
from batch_pipeline.errors import PermanentError, PipelineError, ServiceDownError, UploadError
from batch_pipeline.model_servers.base import CancelledCheck, EmbeddingModel, VisionModel
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.storage import Storage

#: In the middle of so many calls of one upload its server went down, and served others in between.
MAX_SERVER_DEATHS = 4
#: What the slots of suspects are named by: there is one for all servers.
_ALL_SERVERS = ["model servers"]
#: Other uploads that are tried: of the same batch, and of those that were completed last.
_SIBLINGS, _COMPLETED = 10, 5


def own_fault(pipeline: Pipeline, error: PipelineError, upload: AnyRow) -> UploadError | None:
    """Tell what an upload fails with, if it is itself the cause; None: it is an outage.

    Args:
        pipeline: who is asked.
        error: what the work on the upload ended with.
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
    """Tell whether an outage began in the middle of a call to a model."""
    return (
        isinstance(error, ServiceDownError)
        and error.kind == "model_server_down"
        and error.if_alone is not None
    )


@contextmanager
def apart_from_suspects(
    pipeline: Pipeline,
    upload: AnyRow,
    model: VisionModel | EmbeddingModel,
    cancelled: CancelledCheck,
) -> Iterator[None]:
    """Surround the calls of an upload to a model; those of a suspect wait for one another.

    Raises:
        ServiceDownError: no server answers a question with a known answer, either.
        WorkCancelledError: `cancelled` answered true while waiting.
    """
    # Where a server is back at once, its death looks like an error in each call that it broke off.
    if not upload.server_deaths and upload.error_kind != "model_server_error":
        yield
        return
    with pipeline.suspects.taken(lambda: _ALL_SERVERS, cancelled):
        if upload.server_deaths and (outage := _outage_of(model, cancelled)):
            raise outage
        yield


def _outage_of(
    model: VisionModel | EmbeddingModel, cancelled: CancelledCheck
) -> ServiceDownError | None:
    # Whether the answer is right is another matter.
    tried = model.try_out(cancelled)
    failed = [found for found in tried if not (found.ok or found.kind == "model_unsuitable")]
    if not failed or len(failed) < len(tried):
        return None
    return ServiceDownError("model_server_down", "; ".join(found.detail for found in failed))


def _others(pipeline: Pipeline, upload: AnyRow) -> list[AnyRow]:
    columns = select(Upload.id, Upload.user_id, Upload.file_path).where(Upload.id != upload.id)
    siblings = columns.where(Upload.batch_id == upload.batch_id).order_by(func.random())
    completed = columns.where(Upload.processing_status == UploadStatus.COMPLETED)
    with pipeline.database.transaction() as connection:
        return [
            *connection.execute(completed.order_by(Upload.updated_at.desc()).limit(_COMPLETED)),
            *connection.execute(siblings.limit(_SIBLINGS)),
        ]


def _storage_serves(storage: Storage, others: list[AnyRow]) -> bool:
    """Tell whether a file of our own and another upload's can be used.

    If every other upload is refused, too, it is not the fault of one. If there is no other, our own
    file decides.
    """
    storage.check()
    refused = False
    for other in others:
        try:
            with storage.open(other.file_path) as file:
                file.read(1)
            storage.check(f"{other.user_id}/{other.id}")
        except PermanentError:
            continue  # it is missing, which says nothing
        except (ServiceDownError, OSError):
            refused = True
        else:
            return True
    return not refused
