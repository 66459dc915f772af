"""The catalog: the assets that the pipeline produces, and the events for each upload.

Materializing an asset in the UI computes nothing: the steps of ``process_batch`` report what they
have stored. The reports of ended batches are in ``batch_reports.py``. Text from a file or a model
is shown with `text_metadata`, which the UI does not render. It never goes into Markdown, nor into
the description of an event, which is Markdown.
"""

import base64
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import PurePath
from typing import Any

import dagster as dg

from batch_pipeline.media.previews import tiny_webp
from batch_pipeline.services.progress.publishing import BatchProgress
from batch_pipeline.services.reports.batch_status import cost_shape
from batch_pipeline.services.upload_processing import UploadReport
from batch_pipeline.settings import Settings
from batch_pipeline.visible_text import visible

BATCHES = dg.DynamicPartitionsDefinition(name="batches")
GROUP = "uploads"
OWNERS = ["team:media"]
_MAX_STEM = 40
#: Longest side of a picture that is shown in the UI (pixels).
PREVIEW_SIDE = 128
#: Longest preview. Dagster's asset pages hide Markdown of 1,000 or more characters behind a click
#: (its run pages always do); 700 bytes are 936 characters of base64. Previews also take space in
#: the event log.
PREVIEW_BYTES = 700

submitted_files = dg.AssetSpec(
    "submitted_files",
    description="Photos and videos as people uploaded them, kept in the storage.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"image", "video"},
)
thumbnails = dg.AssetSpec(
    "thumbnails",
    deps=[submitted_files],
    description="A JPEG within 256 x 256 pixels for every upload. Partition: batch.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"image", "python"},
    partitions_def=BATCHES,
)
descriptions = dg.AssetSpec(
    "descriptions",
    deps=[submitted_files],
    description=(
        "What a vision model sees in every upload, in words; only what passed the audit is kept. "
        "Partition: batch."
    ),
    group_name=GROUP,
    owners=OWNERS,
    kinds={"llm", "postgres"},
    partitions_def=BATCHES,
)
embeddings = dg.AssetSpec(
    "embeddings",
    deps=[descriptions],
    description=(
        "The vector of every description, which `batch-pipeline search` compares. Partition: batch."
    ),
    group_name=GROUP,
    owners=OWNERS,
    kinds={"vectordb", "postgres"},
    partitions_def=BATCHES,
)
upload_analysis = dg.AssetSpec(
    "upload_analysis",
    deps=[thumbnails, descriptions, embeddings],
    description=(
        "One materialization per upload that was processed: preview, description, audit score, "
        "models, seconds per stage. Partition: batch."
    ),
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres", "python"},
    partitions_def=BATCHES,
)
batch_progress = dg.AssetSpec(
    "batch_progress",
    deps=[upload_analysis],
    description="Counters of a batch while it is processed; plotted over time. Partition: batch.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
    partitions_def=BATCHES,
)
batch_report = dg.AssetSpec(
    "batch_report",
    deps=[upload_analysis, batch_progress],
    description=(
        "The result of a batch that has ended: counts, failures with their reasons, slowest "
        "uploads, throughput, contact sheet. Partition: batch."
    ),
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres", "image"},
    partitions_def=BATCHES,
)
run_cleanups = dg.AssetSpec(
    "run_cleanups",
    deps=[batch_progress],
    description=(
        "Runs that failed or were terminated: why, and what became of the uploads that they held. "
        "Partition: batch."
    ),
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
    partitions_def=BATCHES,
)
backlog = dg.AssetSpec(
    "backlog",
    deps=[batch_progress],
    description="What each sweep of the backlog found and put right.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
    # A sweep runs once an hour even if there is nothing to do.
    freshness_policy=dg.FreshnessPolicy.time_window(
        warn_window=timedelta(minutes=90), fail_window=timedelta(hours=3)
    ),
)


def build_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Return all assets.

    A report is made only when a batch ends. So reports have a freshness policy only if a setting
    says how often a batch is expected to end.
    """
    hours = settings.report_freshness_hours
    fresh = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours)) if hours else None
    return [
        submitted_files,
        thumbnails,
        descriptions,
        embeddings,
        upload_analysis,
        batch_progress,
        batch_report.replace_attributes(freshness_policy=fresh),
        run_cleanups,
        backlog,
    ]


def plain_stem(filename: str) -> str:
    """Return a recognisable form of a file's name: only letters, digits and underscores."""
    stem = re.sub(r"[^A-Za-z0-9]+", "_", PurePath(filename).name).strip("_")[:_MAX_STEM].strip("_")
    return stem or "file"


def upload_materialization(
    report: UploadReport, thumbnail: bytes | None
) -> dg.AssetMaterialization:
    """Report what was stored for an upload."""
    described = report.described
    description = described.description if described else None
    score = described.score if described else 0
    metadata: dict[str, Any] = {
        "file": text_metadata(report.filename),
        "upload_id": str(report.upload_id),
        "description": text_metadata(description.text if description else ""),
        "tags": text_metadata(", ".join(description.tags if description else ())),
        "visible_text": text_metadata(description.visible_text if description else ""),
        "audit_score": score,
        "vision_model": described.model if described else "",
        "made_with": described.fingerprint if described else "",
        "embedding_model": report.embedding_model or "",
        "attempt": report.attempt,
        "seconds": round(sum(report.seconds.values()), 3),
        **{f"seconds_{stage}": seconds for stage, seconds in report.seconds.items()},
        **cost_metadata(cost_shape(report.account.total)),
    }
    if described and described.copied_from:
        metadata["copied_from"] = str(described.copied_from)
    return dg.AssetMaterialization(
        upload_analysis.key,
        # The description is rendered as Markdown, so the file's name must not contain any.
        description=f"{plain_stem(report.filename)}: completed, audit {score}",
        metadata=preview(thumbnail) | metadata,
        partition=str(report.batch_id) if report.batch_id else None,
    )


def progress_materialization(progress: BatchProgress) -> dg.AssetMaterialization:
    """Report the progress of a batch in numbers, which the UI plots."""
    return dg.AssetMaterialization(
        batch_progress.key,
        description=f"{progress.processed} of {progress.total}, {progress.failed} failed",
        metadata=progress_metadata(progress),
        partition=str(progress.batch_id),
    )


def progress_metadata(progress: BatchProgress) -> Mapping[str, Any]:
    """Return the counters of a batch as metadata, named like the columns and the messages."""
    return {
        "status": text_metadata(progress.status),
        "total": progress.total,
        "processed": progress.processed,
        "successful": progress.successful,
        "failed": progress.failed,
        "progress_percentage": progress.progress_percentage,
    }


def cost_metadata(cost: Mapping[str, Any]) -> Mapping[str, int | float]:
    """Return the costs of model calls; empty if there were none, as with embedded models."""
    if not cost["calls"]:
        return {}
    return {
        "model_calls": cost["calls"],
        "tokens_in": cost["tokens_in"],
        "tokens_out": cost["tokens_out"],
        "model_seconds": cost["seconds"],
    }


def text_metadata(text: object) -> dg.TextMetadataValue:
    """Show text from a file or a model literally, without characters that reorder or hide text."""
    return dg.MetadataValue.text(visible(text))


def preview(thumbnail: bytes | None) -> dict[str, Any]:
    """Return metadata that shows a thumbnail; empty if there is none."""
    if thumbnail is None:
        return {}
    data = base64.b64encode(tiny_webp(thumbnail, PREVIEW_BYTES)).decode()
    return {"preview": dg.MetadataValue.md(f"![thumbnail](data:image/webp;base64,{data})")}
