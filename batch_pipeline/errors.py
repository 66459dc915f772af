"""Every error the pipeline raises on purpose, named by what to do next.

::

    PipelineError
    ├── ConfigurationError       a setting or an installation is wrong: fix it, start again
    ├── RefusedError             a request cannot be granted as it stands: change the request
    │   └── NotFoundError        … because what it names does not exist
    ├── UploadError              the work on one upload ended without a result
    │   ├── PermanentError       the file itself is the reason: never retried, upload ``failed``
    │   └── TransientError       may pass next time: retried with backoff, then ``failed``
    ├── ServiceDownError         nothing can be worked now: uploads back to ``pending``, run stops
    ├── ClaimLostError           a write was refused, another run holds the upload: stop
    ├── WorkCancelledError       nobody wants the result any more (batch or run stopped): stop
    └── WorkPausedError          a person has paused it: uploads back to ``pending`` until resumed

An ``UploadError`` and a ``ServiceDownError`` carry a ``kind``: a short, stable word in
``snake_case`` that is stored with the upload, so that people can filter by it; the message is
for reading and is kept word for word, less what no reader can see.
"""

from batch_pipeline.masking import masked
from batch_pipeline.visible_text import visible


class PipelineError(Exception):
    """Base of everything below; its message is written for the person who has to act on it.

    It may quote a library that quotes a URL of the settings: passwords are masked here.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


class ConfigurationError(PipelineError):
    """A setting or the installation is wrong; the message names it and what is accepted."""


class RefusedError(PipelineError):
    """A request cannot be granted as it stands; nothing was changed."""


class NotFoundError(RefusedError):
    """A request names something that does not exist."""


class KindedError(PipelineError):
    """An error with a stable ``kind`` that is stored beside its message.

    The message may quote a file or a model server: controls are replaced here, once for the log,
    the database, Dagster and the terminal.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(visible(message))
        self.kind = kind


class UploadError(KindedError):
    """The work on one upload ended without a result."""


class PermanentError(UploadError):
    """The file itself is the reason; trying again cannot help."""

    def __init__(self, kind: str, message: str, *, preview: bytes | None = None) -> None:
        super().__init__(kind, message)
        self.preview = preview
        """A small JPEG of what could be decoded of the file, if anything could."""


class TransientError(UploadError):
    """May pass next time: a time-out, a 5xx, a reset connection, an answer that fails the audit."""


class ServiceDownError(KindedError):
    """The model server, the storage or the database cannot be reached or used at all.

    Args:
        kind: the stable word.
        message: for reading.
        resume_after_seconds: when the service itself said that it can be asked again, if it did.
        if_alone: what it is after all if nobody else feels the outage: the fault of the one upload
            that met it. `services/outages.py` asks.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        resume_after_seconds: float | None = None,
        if_alone: UploadError | None = None,
    ) -> None:
        super().__init__(kind, message)
        self.resume_after_seconds = resume_after_seconds
        self.if_alone = if_alone


class ClaimLostError(PipelineError):
    """A write was refused: the upload was rescued by somebody else, cancelled or deleted."""


class WorkCancelledError(PipelineError):
    """The caller no longer wants the result: its batch was cancelled or its run is stopped."""


class WorkPausedError(PipelineError):
    """A call may not begin, because a person has paused the work or all model servers for it."""
