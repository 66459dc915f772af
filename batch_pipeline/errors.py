"""Every error that the pipeline raises on purpose, named by what to do next.

::

    PipelineError
    ├── ConfigurationError       a setting or an installation is wrong: fix it, start again
    ├── RefusedError             a request cannot be granted as it stands: change the request
    │   └── NotFoundError        … because what it names does not exist
    ├── UploadError              the work on one upload ended without a result
    │   ├── PermanentError       the file itself is the reason: never retried, upload ``failed``
    │   └── TransientError       may pass next time: retried with backoff, then ``failed``
    ├── ServiceDownError         no upload can be processed: all back to ``pending``, run stops
    ├── ClaimLostError           a write was refused, another run holds the upload: stop
    ├── WorkCancelledError       the result is no longer wanted (batch or run stopped): stop
    └── WorkPausedError          a person has paused it: uploads back to ``pending`` until resumed

An ``UploadError`` and a ``ServiceDownError`` have a ``kind``: a short, stable word in
``snake_case``. It is stored with the upload, so that people can filter by it. The message is for
people. It is stored word for word, without characters that a reader cannot see.
"""

from batch_pipeline.masking import masked
from batch_pipeline.visible_text import visible


class PipelineError(Exception):
    """Base of all errors below. The message is written for the person who has to act.

    The message may quote a library that quotes a URL of the settings, so passwords are masked here.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


class ConfigurationError(PipelineError):
    """A setting or the installation is wrong; the message names it and the accepted values."""


class RefusedError(PipelineError):
    """A request cannot be granted as it stands.

    Unless the message says otherwise, nothing was changed.
    """


class NotFoundError(RefusedError):
    """A request names something that does not exist."""


class KindedError(PipelineError):
    """An error with a stable ``kind`` that is stored beside its message.

    The message may quote a file or a model server. Control characters are replaced here, once for
    the log, the database, Dagster and the terminal.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(visible(message))
        self.kind = kind


class UploadError(KindedError):
    """The work on one upload ended without a result."""


class PermanentError(UploadError):
    """The file itself is the reason, so another try cannot help."""

    def __init__(self, kind: str, message: str, *, preview: bytes | None = None) -> None:
        super().__init__(kind, message)
        self.preview = preview
        """A small JPEG of the part of the file that could be decoded, if any."""


class TransientError(UploadError):
    """A time-out, a 5xx, a reset connection or a failed audit; the next try may succeed."""


class ServiceDownError(KindedError):
    """The model server, the storage or the database cannot be reached or used at all.

    Args:
        kind: the stable word.
        message: the text for people.
        resume_after_seconds: the waiting time that the service itself named, if it did.
        if_alone: the error to use instead if no other upload is affected, because this upload is
            then the cause. `services/outages.py` decides.
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
    """A write was refused: the upload was taken over by another run, cancelled or deleted."""


class WorkCancelledError(PipelineError):
    """The caller no longer wants the result: its batch was cancelled or its run is stopped."""


class WorkPausedError(PipelineError):
    """A call may not begin, because a person has paused the work or all model servers for it."""
