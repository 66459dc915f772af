"""Decides whether a file is accepted: by its content, the settings and the installed packages."""

from collections.abc import Collection
from importlib.util import find_spec

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.sniffing import ACCEPTED_TYPES, MediaType, refusal_reason, sniff
from batch_pipeline.wording import how_to_install

FORMATS = tuple(dict.fromkeys(media_type.format for media_type in ACCEPTED_TYPES))
"""Every format that can be accepted, by its canonical name."""

EXTRAS = {"rawpy": "raw", "pillow_jxl": "jxl"}
"""For each optional package, the extra of this project that installs it."""


def accept(head: bytes, allowed: Collection[str] = FORMATS) -> MediaType:
    """Return the type of a file, judged by its first bytes.

    Args:
        head: the result of `read_head`.
        allowed: formats that the operator accepts.

    Raises:
        PermanentError: ``empty_file``, or ``unsupported_format`` with the type of the file and the
            accepted formats.
    """
    if not head:
        raise PermanentError("empty_file", refusal_reason(head))
    media_type = sniff(head)
    if media_type is None:
        raise PermanentError("unsupported_format", refusal_reason(head))
    if media_type.format not in allowed:
        raise PermanentError(
            "unsupported_format",
            f"the content is {media_type.label}, which is not among the accepted formats: "
            f"{', '.join(sorted(allowed))} (BATCH_PIPELINE_ACCEPTED_FORMATS)",
        )
    if media_type.package and find_spec(media_type.package) is None:
        extra = EXTRAS[media_type.package]
        raise PermanentError(
            "unsupported_format",
            f"the content is {media_type.label}, which needs the extra `{extra}`: "
            f"{how_to_install(extra)}",
        )
    return media_type
