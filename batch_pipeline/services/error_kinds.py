"""All kinds of errors, what they mean and what to do; the source of docs/troubleshooting.md.

The code that raises an error sets its kind (`errors.py`). A test compares both lists. Texts are
Markdown; links are relative to ``docs/``.
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Ending(StrEnum):
    """What happens to an upload after an error of a kind."""

    FILE = "file"
    """The upload fails at once. It fails in the same way until the cause is fixed."""
    PASSES = "passes"
    """The upload is retried and then fails. A later retry may work."""
    SERVICE = "service"
    """The upload waits until a service works again. This affects all uploads."""


@dataclass(frozen=True)
class ErrorKind:
    """One kind of error, with its meaning and advice."""

    name: str
    ending: Ending
    means: str
    advice: str

    @property
    def plain_means(self) -> str:
        """The meaning as plain text, for a terminal."""
        return _plain(self.means)

    @property
    def plain_advice(self) -> str:
        """The advice as plain text, for a terminal."""
        return _plain(self.advice)


def _plain(markdown: str) -> str:
    """Replace links by their text and page, and remove emphasis."""
    text = re.sub(r"\[([^]]+)\]\(([^)#]+)[^)]*\)", r"\1 (docs/\2)", markdown)
    return text.replace("*", "")


ERROR_KINDS = (
    ErrorKind(
        "empty_file",
        Ending.FILE,
        "The file has 0 bytes.",
        "Check how the file was copied, and submit it again.",
    ),
    ErrorKind(
        "truncated",
        Ending.FILE,
        "The file is incomplete: it ends too early.",
        "Copy or upload the file again from its source.",
    ),
    ErrorKind(
        "unreadable_image",
        Ending.FILE,
        "The file starts like a picture but cannot be decoded.",
        "Open it in another program and save it again.",
    ),
    ErrorKind(
        "unreadable_video",
        Ending.FILE,
        (
            "The file starts like a video but cannot be decoded. If the codec is the cause, the "
            "reason names it."
        ),
        "Convert it, for example to H.264 in MP4.",
    ),
    ErrorKind(
        "unsupported_format",
        Ending.FILE,
        (
            "The content of the file has no accepted format, or its decoder is in an extra that is "
            "not installed. The reason says which."
        ),
        "Install the extra, or convert the file to one of [these formats](formats.md).",
    ),
    ErrorKind(
        "no_video_stream",
        Ending.FILE,
        "The video container has only sound, or sound and a cover picture.",
        "Nothing; the file has no video.",
    ),
    ErrorKind(
        "file_too_large",
        Ending.FILE,
        "The picture has more bytes than allowed, so it was not read. The reason says how many.",
        "Make the file smaller, or raise `BATCH_PIPELINE_MAX_FILE_BYTES`, then `retry`.",
    ),
    ErrorKind(
        "too_many_pixels",
        Ending.FILE,
        (
            "Decoding the file would take more memory than allowed, or the file claims more "
            "pixels than it can contain. The reason says how much, and the limit."
        ),
        "Make the picture smaller, or raise `BATCH_PIPELINE_MAX_DECODE_MIB`.",
    ),
    ErrorKind(
        "oversized_metadata",
        Ending.FILE,
        "The metadata is far larger than any camera writes.",
        "Remove the metadata (`exiftool -all=`).",
    ),
    ErrorKind(
        "source_missing",
        Ending.FILE,
        (
            "The file is not in the storage: it was deleted, or the path in the row leads out of "
            "the storage."
        ),
        "Restore the file from a backup, then `retry`; check `BATCH_PIPELINE_STORAGE_URL`.",
    ),
    ErrorKind(
        "source_unreadable",
        Ending.FILE,
        (
            "Only this file cannot be read. Causes: permissions, a loop of links, a name that is "
            "too long, an object in cold storage or with its own key. If the reason may "
            "be temporary (a timeout, an I/O error), the upload is tried again first."
        ),
        "Fix what the reason names, then `retry`.",
    ),
    ErrorKind(
        "thumbnail_not_stored",
        Ending.FILE,
        "Only the folder of this upload cannot be written.",
        "Fix its permissions and attributes (`lsattr`), then `retry`.",
    ),
    ErrorKind(
        "model_refused_input",
        Ending.FILE,
        (
            "The model service refuses this picture: because of moderation (403, a content "
            "filter), or because of the picture itself (400, 413, 415, 422)."
        ),
        "Read the reason; raise the limits of the service or choose another model, then `retry`.",
    ),
    ErrorKind(
        "killed_worker",
        Ending.FILE,
        "The worker process died three times while it processed this file.",
        (
            "Look for *out of memory* in the system log; lower "
            "`BATCH_PIPELINE_MAX_CONCURRENT_UPLOADS`; then `retry`."
        ),
    ),
    ErrorKind(
        "model_timeout",
        Ending.PASSES,
        "The model server did not answer in time.",
        (
            "Raise `BATCH_PIPELINE_MODEL_READ_SECONDS` or `…_TOTAL_SECONDS`, or lower "
            "`BATCH_PIPELINE_MAX_VISION_CALLS`."
        ),
    ),
    ErrorKind(
        "model_server_busy",
        Ending.PASSES,
        "The server answered 503 again and again, without saying how long to wait.",
        "Lower `BATCH_PIPELINE_MAX_VISION_CALLS`.",
    ),
    ErrorKind(
        "model_refused_call",
        Ending.PASSES,
        (
            "The server answered 401, 403 or 404 for this upload only; at the same time it "
            "answered a known picture or another upload."
        ),
        "Read the reason; often a filter in front of the server refuses the call.",
    ),
    ErrorKind(
        "model_server_crash",
        Ending.PASSES,
        (
            "The server crashed four times during calls for this file, and answered other calls "
            "in between. Each later retry by the sweep makes one call."
        ),
        (
            "Read the server's log; often the picture is too large for its memory. Fix the server "
            "or the file, then `retry`."
        ),
    ),
    ErrorKind(
        "model_server_error",
        Ending.PASSES,
        "The server answered 5xx, or the connection broke.",
        "Read the server's log; often the server is out of memory.",
    ),
    ErrorKind(
        "model_output_invalid",
        Ending.PASSES,
        (
            "The answer was cut off, empty or not valid for the protocol, or the description "
            "failed the audit. The reason lists the penalties."
        ),
        "Use a larger or less quantised model, or more context (`--ctx-size`, `num_ctx`).",
    ),
    ErrorKind(
        "embedding_empty",
        Ending.PASSES,
        "The embedding model returned no vector.",
        "Check that `BATCH_PIPELINE_EMBEDDING_MODEL` is an embedding model.",
    ),
    ErrorKind(
        "embedding_not_finite",
        Ending.PASSES,
        "The vector contains NaN or infinity.",
        "Update the server, or use another quantisation of the model.",
    ),
    ErrorKind(
        "embedding_zero",
        Ending.PASSES,
        "The vector is all zeros.",
        "Update the server, or use another quantisation of the model.",
    ),
    ErrorKind(
        "internal_error",
        Ending.PASSES,
        "An unexpected error in our code or in a library. The log of the run has the traceback.",
        "Run `retry`; if the error comes back, report it with the traceback.",
    ),
    ErrorKind(
        "database_down",
        Ending.SERVICE,
        (
            "PostgreSQL cannot be reached, accepts no connections or no writes (a standby, a "
            "failover), or aborted the transaction ten times in favour of others."
        ),
        (
            "Start it; wait for the failover to end; check `BATCH_PIPELINE_DATABASE_URL` and "
            "`max_connections`. The embedded server logs under `postgres` in [the "
            "home](operations.md#the-home)."
        ),
    ),
    ErrorKind(
        "storage_down",
        Ending.SERVICE,
        "The storage cannot be read or written, or holds nothing at all.",
        (
            "Check the mount, `BATCH_PIPELINE_STORAGE_URL`, permissions, or the credentials of the "
            "object store. If all files are gone for ever: `batch-pipeline tidy --take-over`."
        ),
    ),
    ErrorKind(
        "storage_full",
        Ending.SERVICE,
        (
            "The storage has no space for thumbnails, or the temporary folder has no space for "
            "copies of remote files."
        ),
        "Free some space; `TMPDIR` names the temporary folder.",
    ),
    ErrorKind(
        "model_server_down",
        Ending.SERVICE,
        "The model server cannot be reached.",
        "Start it; check `BATCH_PIPELINE_OLLAMA_HOST` or `…_OPENAI_BASE_URL`.",
    ),
    ErrorKind(
        "model_missing",
        Ending.SERVICE,
        "The server does not have the model, or files of an embedded model are missing or changed.",
        (
            "Run `ollama pull …` or the installation that the reason names, or set another "
            "`BATCH_PIPELINE_VISION_MODEL`."
        ),
    ),
    ErrorKind(
        "model_server_refused",
        Ending.SERVICE,
        "The server refuses the key or does not know the path.",
        "Check `BATCH_PIPELINE_OPENAI_API_KEY` and the base URL.",
    ),
    ErrorKind(
        "model_address_wrong",
        Ending.SERVICE,
        "The address redirects calls, or its path takes no calls (405).",
        "Set `BATCH_PIPELINE_OLLAMA_HOST` or `…_OPENAI_BASE_URL` to the model server itself.",
    ),
    ErrorKind(
        "model_quota_used_up",
        Ending.SERVICE,
        "The quota of the model service is used up (402, `insufficient_quota`).",
        "Check the plan and the billing of the service.",
    ),
    ErrorKind(
        "model_rate_limited",
        Ending.SERVICE,
        (
            "The service asks for a pause of more than two minutes, or has refused a call until "
            "its time limit (`BATCH_PIPELINE_MODEL_TOTAL_SECONDS`). The uploads wait until "
            "the pause is over, at most 15 minutes."
        ),
        "Nothing, or ask the service for a higher limit.",
    ),
    ErrorKind(
        "model_refuses_all",
        Ending.SERVICE,
        "The server answers 400 or 422 to every call, even for a known picture.",
        "Read the reason; often the name of the model is wrong, or the server has a limit.",
    ),
    ErrorKind(
        "model_fails_all",
        Ending.SERVICE,
        ("The server lists its models, but answers every call with 5xx, even for a known picture."),
        (
            "Read the reason; often the model does not fit into memory, is still being loaded, or "
            "the server behind a gateway is away."
        ),
    ),
    ErrorKind(
        "model_refused_options",
        Ending.SERVICE,
        "The model refuses an option that was set.",
        "Remove it from `BATCH_PIPELINE_VISION_OPTIONS` or `…_EMBEDDING_OPTIONS`.",
    ),
    ErrorKind(
        "model_thinks",
        Ending.SERVICE,
        "The model's thinking uses up all tokens before it answers.",
        (
            "Use a model that does not think, or switch thinking off with "
            "`BATCH_PIPELINE_VISION_OPTIONS`."
        ),
    ),
    ErrorKind(
        "model_unsuitable",
        Ending.SERVICE,
        (
            "The model does not accept pictures, or does not embed; `doctor` also reports a model "
            "that does not see."
        ),
        "Use another model; llama.cpp needs `--mmproj`.",
    ),
    ErrorKind(
        "embedding_wrong_length",
        Ending.SERVICE,
        "The vectors do not have the length that is set.",
        (
            "Set `BATCH_PIPELINE_EMBEDDING_DIMENSIONS` to the length that the message names, or "
            "use another model."
        ),
    ),
    ErrorKind(
        "broker_down",
        Ending.SERVICE,
        "The broker of the Celery workers does not answer, or its disk or memory is full.",
        "Start it, or make room; check `BATCH_PIPELINE_CELERY_BROKER_URL`.",
    ),
    ErrorKind(
        "lost_worker",
        Ending.SERVICE,
        (
            "A Celery worker started a step and has not reported since. Another run processes the "
            "upload."
        ),
        "Nothing; if it happens often, look for *out of memory* on the host of the worker.",
    ),
    ErrorKind(
        "lost_message",
        Ending.SERVICE,
        (
            "No Celery worker has started the step, and its message is no longer in the broker. "
            "Another run processes the upload."
        ),
        "Nothing; let the broker keep its messages across restarts (Redis: `appendonly yes`).",
    ),
    ErrorKind(
        "configuration",
        Ending.SERVICE,
        "A setting or the installation is wrong.",
        "Fix what the reason names, then restart Dagster.",
    ),
)

#: Kinds by name.
BY_NAME = {kind.name: kind for kind in ERROR_KINDS}
#: Kinds of errors with which an upload fails in the same way until the cause is fixed.
SAME_AGAIN = frozenset(kind.name for kind in ERROR_KINDS if kind.ending is Ending.FILE)
#: Kinds of errors for which an upload waits until a service works again.
OUTAGES = frozenset(kind.name for kind in ERROR_KINDS if kind.ending is Ending.SERVICE)
