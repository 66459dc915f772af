"""The report of a batch that has ended, as events of four assets.

Figures that differ from batch to batch are numbers, so that the UI plots them. Names and reasons
are in tables, which the UI shows literally. The pictures contain no text from files or models.
"""

import base64
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import dagster as dg

from batch_pipeline.orchestration.assets import (
    batch_report,
    cost_metadata,
    descriptions,
    embeddings,
    plain_stem,
    text_metadata,
    thumbnails,
)
from batch_pipeline.services.reports.batch_summary import BatchSummary

#: The assets that a report materializes.
REPORTED = (thumbnails, descriptions, embeddings, batch_report)


def report_of(summary: BatchSummary) -> list[dg.AssetMaterialization | dg.AssetObservation]:
    """Return the report of a batch, and events about its stored results.

    The report of a batch that was cancelled or given up is an observation, because a
    materialization would make its partition green.
    """
    batch_id = str(summary.head["batch_id"])
    results, total = summary.results, summary.head["total_uploads"]
    stored: tuple[tuple[dg.AssetSpec, int, dict[str, Any]], ...] = (
        (thumbnails, results.thumbnails, {}),
        (
            descriptions,
            results.descriptions,
            {
                "mean_audit_score": results.mean_score,
                "lowest_audit_score": results.lowest_score,
                "models": ", ".join(results.vision_models),
            },
        ),
        (embeddings, results.embeddings, {"models": ", ".join(results.embedding_models)}),
    )
    return [
        *(
            dg.AssetMaterialization(
                spec.key,
                description=f"{count} of {total} uploads",
                metadata={"stored": count, "missing": total - count} | _without_none(more),
                partition=batch_id,
            )
            for spec, count, more in stored
        ),
        (dg.AssetMaterialization if summary.is_completed else dg.AssetObservation)(
            batch_report.key,
            description=headline(summary),
            metadata=_report(summary),
            partition=batch_id,
        ),
    ]


def no_report_of(batch_id: UUID, reason: str) -> dg.AssetObservation:
    """Return what replaces the report of a batch that could not be made in several tries."""
    return dg.AssetObservation(
        batch_report.key,
        description="the report could not be made",
        metadata={
            "reason": text_metadata(reason),
            "next": text_metadata(f"`batch-pipeline status {batch_id}` shows the batch"),
        },
        partition=str(batch_id),
    )


def headline(summary: BatchSummary) -> str:
    """Return the report in one line."""
    # The headline is rendered as Markdown, so the name must not contain any.
    name = f"{plain_stem(summary.head['name'])}, " if summary.head["name"] else ""
    return name + outcome_line(summary)


def outcome_line(summary: BatchSummary) -> str:
    """Return how a batch ended, with its counts."""
    head = summary.head
    return (
        f"{head['status']}: {head['successful_uploads']} of {head['total_uploads']} uploads "
        f"completed, {head['failed_uploads']} failed"
    )


def _report(summary: BatchSummary) -> dict[str, Any]:
    head, duration = summary.head, summary.duration
    seconds = round(duration.total_seconds(), 3) if duration else None
    metadata: dict[str, Any] = {
        "name": text_metadata(head["name"]) if head["name"] else None,
        "status": head["status"],
        "total": head["total_uploads"],
        "successful": head["successful_uploads"],
        "failed": head["failed_uploads"],
        "seconds": seconds,
        "uploads_per_minute": round(60 * head["processed_uploads"] / seconds, 1)
        if seconds
        else None,
        "reason": text_metadata(head["error_message"]) if head["error_message"] else None,
        "contact_sheet": _picture("image/jpeg", summary.contact_sheet),
        "throughput": _picture("image/svg+xml", summary.throughput.encode()),
    }
    if summary.failure_kinds:
        metadata["failures_by_kind"] = _table(
            {"kind": "string", "uploads": "int"}, summary.failure_kinds.items()
        )
        metadata["failures"] = _table(
            {"file": "string", "kind": "string", "reason": "string", "attempts": "int"},
            ((f.file, f.kind, f.reason, f.attempts) for f in summary.failures),
        )
        left_out = head["failed_uploads"] - len(summary.failures)
        metadata["failures_not_shown"] = left_out or None
    if models := head["cost"]["models"]:
        metadata |= cost_metadata(head["cost"])
        metadata["model_usage"] = _table(
            {
                "model": "string",
                "kind": "string",
                "calls": "int",
                "tokens_in": "int",
                "tokens_out": "int",
                "seconds": "float",
            },
            (
                (m["model"], m["kind"], m["calls"], m["tokens_in"], m["tokens_out"], m["seconds"])
                for m in models
            ),
        )
    metadata["slowest_uploads"] = _table(
        {"file": "string", "seconds": "float", "slowest_stage": "string"},
        ((s.file, s.seconds, s.slowest_stage) for s in summary.slowest),
    )
    metadata["stages"] = _table(
        {
            "stage": "string",
            "uploads": "int",
            "median_seconds": "float",
            "slowest_seconds": "float",
            "percent_of_time": "float",
        },
        (
            (s.stage, s.uploads, round(s.median, 3), round(s.slowest, 3), round(100 * s.share, 1))
            for s in summary.stages
        ),
    )
    return _without_none(metadata)


def _picture(media_type: str, data: bytes | None) -> dg.MarkdownMetadataValue | None:
    if not data:
        return None
    encoded = base64.b64encode(data).decode()
    return dg.MetadataValue.md(f"![](data:{media_type};base64,{encoded})")


def _table(
    columns: dict[str, str], rows: Iterable[tuple[str | int | float, ...]]
) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        records=[dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows],
        schema=dg.TableSchema([dg.TableColumn(name, type_) for name, type_ in columns.items()]),
    )


def _without_none(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if value is not None}
