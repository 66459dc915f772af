"""Tries the configured prompts: asks the vision model about one file, and stores nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_pipeline.errors import PermanentError, RefusedError
from batch_pipeline.languages import language_name
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import read_head
from batch_pipeline.model_servers.base import Caller, Description, Usage, VisionModel
from batch_pipeline.model_servers.factory import build_analyzer, prompts_of
from batch_pipeline.model_servers.picture_size import picture_size
from batch_pipeline.model_servers.prompts import PLACEHOLDERS
from batch_pipeline.services.descriptions.audit import AuditResult, audit
from batch_pipeline.services.inspection import open_file
from batch_pipeline.services.reports.batch_status import cost_shape
from batch_pipeline.services.sidecars import sidecar_date
from batch_pipeline.settings import Settings


@dataclass(frozen=True)
class Trial:
    """The answer of a model for one file."""

    file: str
    model: str
    description: Description
    audit: AuditResult
    usage: Usage
    """0 calls means that the model is embedded."""

    def shape(self) -> dict[str, Any]:
        """Return the trial as a dictionary for JSON."""
        return {
            "file": self.file,
            "vision_model": self.model,
            "description": self.description.text,
            "tags": self.description.tags,
            "visible_text": self.description.visible_text,
            "description_audit_score": self.audit.score,
            "passed": self.audit.passed,
            "reasons": self.audit.reasons,
            "cost": cost_shape(self.usage),
        }


def lone_vision(settings: Settings) -> VisionModel:
    """Return the vision model, without the limit on calls that processes share in the database.

    Raises:
        ConfigurationError: a setting of the model is not valid.
    """
    return build_analyzer(settings).vision


def try_prompt(path: Path, settings: Settings, vision: VisionModel) -> Trial:
    """Ask the vision model about a file in the same way as the pipeline.

    Raises:
        RefusedError: the file cannot be read.
        PermanentError: the file is not acceptable or cannot be decoded.
        TransientError: the model returned no usable answer.
        ServiceDownError: the model cannot be called.
    """
    try:
        with open_file(path) as file:
            media_type = accept(read_head(file), settings.accepted_format_names)
            file.seek(0)
            content = decode(
                file,
                media_type,
                filename=path.name,
                sidecar_date=sidecar_date(path),
                max_bytes=settings.max_decode_mib * 1024**2,
                max_file_bytes=settings.max_file_bytes,
                patch=picture_size(settings).patch,
            )
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror or error}") from error
    except PermanentError as error:
        raise PermanentError(error.kind, f"{path}: {error}") from error
    spent: list[Usage] = []
    description = vision.describe(content.facts, content.frames, caller=Caller(spent=spent.append))
    return Trial(
        file=str(path),
        model=vision.name,
        description=description,
        audit=audit(description.text, settings.language),
        usage=sum(spent, Usage(calls=0)),
    )


def shown_prompts(settings: Settings) -> dict[str, Any]:
    """Return the configured prompts, their placeholders, and the file of each prompt.

    Raises:
        ConfigurationError: a file in the folder of prompts cannot be used.
    """
    prompts = prompts_of(settings)
    files = {name: Path(settings.prompts, f"{name}.txt") for name in PLACEHOLDERS}
    return {
        "language": settings.language or "en",
        "language_name": language_name(settings.language),
        "prompts": [
            {
                "name": name,
                "file": str(files[name]) if settings.prompts and files[name].exists() else None,
                "text": getattr(prompts, name),
                "placeholders": dict(known),
            }
            for name, known in PLACEHOLDERS.items()
        ],
    }
