"""Asset checks of batches: a badge in the UI shows a problem of a batch, however its runs ended.

The sensor that reports an ended batch evaluates them. In the UI they can be run for chosen
partitions, or for everything that is stored.
"""

import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import dagster as dg

from batch_pipeline.errors import NotFoundError
from batch_pipeline.orchestration.assets import BATCHES, batch_report, upload_analysis
from batch_pipeline.orchestration.ops import parse_id
from batch_pipeline.services.descriptions.audit import PASS_SCORE
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_verdicts import BatchVerdict, verdict


def _failures(found: BatchVerdict) -> dict[str, Any]:
    """Check whether every upload of a batch has a result."""
    return {
        "passed": not found.failed and found.gave_up is None,
        "severity": dg.AssetCheckSeverity.ERROR,
        "description": found.gave_up or f"{found.failed} of {found.total} uploads failed",
        "metadata": {"failed": found.failed, "total": found.total},
    }


def _quality(found: BatchVerdict) -> dict[str, Any]:
    """Check whether every description passed the audit; report the share and the lowest score."""
    passed, made = found.passed_audit, found.described
    worst = {} if found.lowest_score is None else {"lowest_audit_score": found.lowest_score}
    return {
        "passed": passed == made,
        "severity": dg.AssetCheckSeverity.WARN,
        "description": f"{passed} of {made} descriptions passed the audit",
        "metadata": {
            "share_passed": round(passed / made, 3) if made else 1.0,
            "passed": passed,
            "made": made,
            "pass_score": PASS_SCORE,
            **worst,
        },
    }


with warnings.catch_warnings():
    # Partitions of checks are a preview feature in Dagster 1.13. Without them the badge would show
    # only the batch that ended last.
    warnings.simplefilter("ignore", dg.PreviewWarning)

    @dg.asset_check(
        asset=batch_report.key,
        partitions_def=BATCHES,
        required_resource_keys={"batch_pipeline"},
        description="Every upload has a result; the batch was neither cancelled nor given up.",
    )
    def no_failed_uploads(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        """Count uploads that failed."""
        return dg.AssetCheckResult(**_failures(_verdict(context)))

    @dg.asset_check(
        asset=upload_analysis.key,
        partitions_def=BATCHES,
        required_resource_keys={"batch_pipeline"},
        description=(
            f"Every description of the batch passed the audit with {PASS_SCORE} of 100 or more; "
            "descriptions with a lower score are not kept."
        ),
    )
    def description_quality(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        """Count descriptions that did not pass."""
        return dg.AssetCheckResult(**_quality(_verdict(context)))


CHECKS = [no_failed_uploads, description_quality]


def evaluations_of(
    batch_id: uuid.UUID, found: BatchVerdict, *, by_partition: bool
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield the results of the checks for an ended batch. A batch may end more than once."""
    for check, result in ((no_failed_uploads, _failures), (description_quality, _quality)):
        [key] = check.check_keys
        yield dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            partition=str(batch_id) if by_partition else None,
            **result(found),
        )


def _verdict(context: dg.AssetCheckExecutionContext) -> BatchVerdict:
    pipeline: Pipeline = context.resources.batch_pipeline
    step = context.op_execution_context
    batch_id = parse_id(step.partition_key, "partition") if step.has_partition_key else None
    try:
        return verdict(pipeline.database, batch_id)
    except NotFoundError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
