"""Whether a service is down, or one upload only looks as if it were.

A file that may not be read and a picture that a model refuses raise the same errors as an outage.
An outage is what others feel, too: whoever raises such an error over one upload says in
``if_alone`` what it would be otherwise, and here others are tried before the whole service is
called down.
"""

from sqlalchemy import func, select

from batch_pipeline.database.models import Upload, UploadStatus
from batch_pipeline.database.session import AnyRow
from batch_pipeline.errors import PermanentError, PipelineError, ServiceDownError, UploadError
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.storage import Storage

#: Other uploads that are tried: of the same batch, and of those that were completed last.
_SIBLINGS, _COMPLETED = 10, 5


def own_fault(pipeline: Pipeline, error: PipelineError, upload: AnyRow) -> UploadError | None:
    """Tell what an upload fails with, if it is itself the cause; None: it is an outage.

    Args:
        pipeline: who is asked.
        error: what the work on the upload ended with.
        upload: ``id`` and ``batch_id``.
    """
    if not isinstance(error, ServiceDownError) or error.if_alone is None:
        return None
    try:
        if error.kind.startswith("storage"):
            serves_others = _storage_serves(pipeline.storage, _others(pipeline, upload))
        else:
            serves_others = pipeline.analyzer_outage() is None
    except ServiceDownError:
        return None
    return error.if_alone if serves_others else None


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
