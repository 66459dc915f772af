"""Every kind of error with what it means and what to do; the source of docs/troubleshooting.md.

Which error has which kind says the code that raises it (`errors.py`); a test keeps the lists equal.
Texts are Markdown, and links lead from ``docs/``.
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Ending(StrEnum):
    """What becomes of an upload that meets an error of a kind."""

    FILE = "file"
    """Failed at once; the same again until what is wrong is mended."""
    PASSES = "passes"
    """Tried again, then failed; later it may work."""
    SERVICE = "service"
    """Waits until a service is mended, which concerns all uploads."""


@dataclass(frozen=True)
class ErrorKind:
    """What there is to say about one kind of error."""

    name: str
    ending: Ending
    means: str
    advice: str

    @property
    def plain_means(self) -> str:
        """What it means, for a terminal."""
        return _plain(self.means)

    @property
    def plain_advice(self) -> str:
        """What to do, for a terminal."""
        return _plain(self.advice)


def _plain(markdown: str) -> str:
    """Links as text with their page, emphasis as text."""
    text = re.sub(r"\[([^]]+)\]\(([^)#]+)[^)]*\)", r"\1 (docs/\2)", markdown)
    return text.replace("*", "")


ERROR_KINDS = (
    ErrorKind(
        "empty_file",
        Ending.FILE,
        "The file has 0 bytes.",
        "Look at how it was copied.",
    ),
    ErrorKind(
        "truncated",
        Ending.FILE,
        "The file ends before its content does.",
        "Copy or upload it again from the source.",
    ),
    ErrorKind(
        "unreadable_image",
        Ending.FILE,
        "A picture's beginning, but it cannot be decoded.",
        "Open it in another program and save it anew.",
    ),
    ErrorKind(
        "unreadable_video",
        Ending.FILE,
        "A video's beginning, but it cannot be decoded; the reason names the codec, if that is it.",
        "Convert it, for instance to H.264 in MP4.",
    ),
    ErrorKind(
        "unsupported_format",
        Ending.FILE,
        (
            "The content is of no kind that is accepted, whatever the name says, or its decoder is"
            " an extra that is not installed; the reason says which."
        ),
        "Install the extra, or convert it to one of [these formats](formats.md).",
    ),
    ErrorKind(
        "no_video_stream",
        Ending.FILE,
        "A video container with sound only, or with sound and a cover picture.",
        "Nothing: there is nothing to see.",
    ),
    ErrorKind(
        "too_many_pixels",
        Ending.FILE,
        (
            "It takes more memory to decode than may be taken, or claims more pixels than its file"
            " can hold; the reason says how much and what is the limit."
        ),
        "Scale it down, or raise `BATCH_PIPELINE_MAX_DECODE_MIB`.",
    ),
    ErrorKind(
        "oversized_metadata",
        Ending.FILE,
        "Metadata of an absurd size, as no camera writes it.",
        "Strip the metadata (`exiftool -all=`).",
    ),
    ErrorKind(
        "source_missing",
        Ending.FILE,
        (
            "The storage holds no such file: it was deleted, or the row names a path that leads "
            "out of the storage."
        ),
        "Restore the file from a backup, then `retry`; check `BATCH_PIPELINE_STORAGE_URL`.",
    ),
    ErrorKind(
        "source_unreadable",
        Ending.FILE,
        (
            "The storage serves others, this one file it does not: permissions, a loop of links, "
            "too long a name, an object in cold storage or with a key of its own. If the reason "
            "may pass (a time-out, an I/O error), it is tried again first."
        ),
        "Mend what the reason names, then `retry`.",
    ),
    ErrorKind(
        "thumbnail_not_stored",
        Ending.FILE,
        "The folder of this one upload cannot be written, others can.",
        "Its permissions and attributes (`lsattr`), then `retry`.",
    ),
    ErrorKind(
        "model_refused_input",
        Ending.FILE,
        (
            "The model service will not take this picture: its moderation refuses it (403, a "
            "content filter), or the picture itself is the trouble (400, 413, 415, 422)."
        ),
        "Read its reason; raise its limits or choose another model, then `retry`.",
    ),
    ErrorKind(
        "killed_worker",
        Ending.FILE,
        "The worker process died three times while it worked on this file.",
        (
            "Look for *out of memory* in the system's log; lower "
            "`BATCH_PIPELINE_MAX_CONCURRENT_UPLOADS`; then `retry`."
        ),
    ),
    ErrorKind(
        "model_timeout",
        Ending.PASSES,
        "The model server was silent or too slow.",
        (
            "Raise `BATCH_PIPELINE_MODEL_READ_SECONDS` or `…_TOTAL_SECONDS`, or lower "
            "`BATCH_PIPELINE_MAX_VISION_CALLS`."
        ),
    ),
    ErrorKind(
        "model_server_busy",
        Ending.PASSES,
        "It answered 503 again and again, and never said until when.",
        "Lower `BATCH_PIPELINE_MAX_VISION_CALLS`.",
    ),
    ErrorKind(
        "model_refused_call",
        Ending.PASSES,
        (
            "It answered 401, 403 or 404 to this upload alone; a known picture, or another upload,"
            " was answered at the same time."
        ),
        "Read its reason: often a filter in front of the server.",
    ),
    ErrorKind(
        "model_server_crash",
        Ending.PASSES,
        (
            "The server went down in the middle of the calls for this file, four times, and "
            "answered others in between. The sweep's tries are one call each."
        ),
        (
            "Read the server's log: often a picture that is too large for its memory. Mend the "
            "server or the file, then `retry`."
        ),
    ),
    ErrorKind(
        "model_server_error",
        Ending.PASSES,
        "It answered 5xx, or broke off.",
        "Read the server's log; often it is out of memory.",
    ),
    ErrorKind(
        "model_output_invalid",
        Ending.PASSES,
        (
            "The answer was cut, empty, not of the protocol, or a description that fails the "
            "audit; the reason lists the penalties."
        ),
        "A larger or less quantised model; more context (`--ctx-size`, `num_ctx`).",
    ),
    ErrorKind(
        "embedding_empty",
        Ending.PASSES,
        "The embedding model returned no vector.",
        "Check that `BATCH_PIPELINE_EMBEDDING_MODEL` embeds.",
    ),
    ErrorKind(
        "embedding_not_finite",
        Ending.PASSES,
        "The vector holds NaN or infinity.",
        "Update the server, or another quantisation of the model.",
    ),
    ErrorKind(
        "embedding_zero",
        Ending.PASSES,
        "The vector is all zeros.",
        "The same.",
    ),
    ErrorKind(
        "internal_error",
        Ending.PASSES,
        "An error nobody foresaw, in our code or a library; the log of the run has where.",
        "`retry`; if it comes back, report it with the traceback from the run's log.",
    ),
    ErrorKind(
        "database_down",
        Ending.SERVICE,
        (
            "PostgreSQL cannot be reached, serves nobody, takes no writes (a standby, a failover),"
            " or let other transactions go first ten times."
        ),
        (
            "Start it; wait for the failover to end; check `BATCH_PIPELINE_DATABASE_URL`; look at "
            "`max_connections`. For the embedded server, its log under `postgres` in [the "
            "home](operations.md#the-home)."
        ),
    ),
    ErrorKind(
        "storage_down",
        Ending.SERVICE,
        "The storage cannot be read or written.",
        "Permissions, mount, credentials of the object store.",
    ),
    ErrorKind(
        "storage_full",
        Ending.SERVICE,
        "No room for thumbnails.",
        "Make room.",
    ),
    ErrorKind(
        "model_server_down",
        Ending.SERVICE,
        "No connection to the model server.",
        "Start it; check `BATCH_PIPELINE_OLLAMA_HOST` or `…_OPENAI_BASE_URL`.",
    ),
    ErrorKind(
        "model_missing",
        Ending.SERVICE,
        (
            "The server does not have the model, or the files of an embedded one are missing or "
            "changed."
        ),
        (
            "`ollama pull …` or the installation that the reason names, or another "
            "`BATCH_PIPELINE_VISION_MODEL`."
        ),
    ),
    ErrorKind(
        "model_server_refused",
        Ending.SERVICE,
        "Key or path is refused.",
        "`BATCH_PIPELINE_OPENAI_API_KEY`, the base URL.",
    ),
    ErrorKind(
        "model_quota_used_up",
        Ending.SERVICE,
        "The service wants to be paid (402, `insufficient_quota`).",
        "The plan and the bill of the service.",
    ),
    ErrorKind(
        "model_rate_limited",
        Ending.SERVICE,
        (
            "The service asks for a pause of more than two minutes, or has turned a call away for "
            "as long as a call may take. The uploads rest until the pause is over, at most 15 "
            "minutes."
        ),
        "Nothing, or a higher limit from the service.",
    ),
    ErrorKind(
        "model_refuses_all",
        Ending.SERVICE,
        "The server answers 400 or 422 to every call, a known picture included.",
        "Read its reason: often the name of the model, or a limit of the server.",
    ),
    ErrorKind(
        "model_refused_options",
        Ending.SERVICE,
        "The model refuses an option that a person has set.",
        "Take it out of `BATCH_PIPELINE_VISION_OPTIONS` or `…_EMBEDDING_OPTIONS`.",
    ),
    ErrorKind(
        "model_thinks",
        Ending.SERVICE,
        "The model thinks, and its thoughts use up all tokens before it answers.",
        (
            "A model that does not think, or `BATCH_PIPELINE_VISION_OPTIONS` with what switches it"
            " off."
        ),
    ),
    ErrorKind(
        "model_unsuitable",
        Ending.SERVICE,
        (
            "The model takes no pictures, or does not embed; `doctor` also says so of one that "
            "does not see."
        ),
        "Another model; llama.cpp needs `--mmproj`.",
    ),
    ErrorKind(
        "embedding_wrong_length",
        Ending.SERVICE,
        "Vectors do not fit the column.",
        (
            "A model of that length, or another `BATCH_PIPELINE_EMBEDDING_DIMENSIONS` with a new "
            "database."
        ),
    ),
    ErrorKind(
        "broker_down",
        Ending.SERVICE,
        "The broker of Celery workers does not answer, so no step can be sent.",
        "Start it; check `BATCH_PIPELINE_CELERY_BROKER_URL`.",
    ),
    ErrorKind(
        "lost_worker",
        Ending.SERVICE,
        (
            "A Celery worker began a step and has shown no sign of life since. The upload goes to "
            "another run by itself."
        ),
        "Nothing; if it happens often, look for *out of memory* on the worker's host.",
    ),
    ErrorKind(
        "lost_message",
        Ending.SERVICE,
        (
            "No Celery worker has begun a step, and its message no longer waits with the broker. "
            "The same."
        ),
        "Nothing; let the broker keep its messages over a restart (Redis: `appendonly yes`).",
    ),
    ErrorKind(
        "configuration",
        Ending.SERVICE,
        "A setting or the installation is wrong.",
        "What the reason says; then restart Dagster.",
    ),
)

#: The same by name.
BY_NAME = {kind.name: kind for kind in ERROR_KINDS}
#: Failed for one of these, an upload fails the same way again unless something is mended.
SAME_AGAIN = frozenset(kind.name for kind in ERROR_KINDS if kind.ending is Ending.FILE)
#: An upload that waits for one of these waits for a service.
OUTAGES = frozenset(kind.name for kind in ERROR_KINDS if kind.ending is Ending.SERVICE)
