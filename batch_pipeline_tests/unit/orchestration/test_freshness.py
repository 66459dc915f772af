"""Which assets Dagster shows as fresh, and after how long they are not."""

from datetime import timedelta

import dagster as dg
import pytest

from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.settings import Settings


@pytest.mark.parametrize(
    ("hours", "expected"),
    [(0, None), (36, dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36)))],
)
def test_reports_are_expected_only_if_a_setting_says_how_often_batches_end(
    hours: int, expected: dg.FreshnessPolicy | None
) -> None:
    definitions = build_definitions(Settings(_env_file=None, report_freshness_hours=hours))
    policies = {
        spec.key.to_user_string(): spec.freshness_policy
        for spec in definitions.resolve_all_asset_specs()
    }
    assert policies.pop("batch_report") == expected
    assert {asset for asset, policy in policies.items() if policy} == {"backlog"}
