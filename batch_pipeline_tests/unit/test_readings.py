"""The rules of `readings` stand in partial indexes, too, and say the same there."""

import pytest

from batch_pipeline.database.models import OPEN_BATCH, Upload, UploadBatch
from batch_pipeline.database.readings import HELD, WAITING, as_text


@pytest.mark.parametrize(
    ("table", "index", "rule"),
    [
        (Upload, "ix_uploads_waiting", WAITING),
        (Upload, "ix_uploads_held", HELD),
        (UploadBatch, "ix_upload_batches_open", UploadBatch.status.in_(OPEN_BATCH)),
    ],
)
def test_a_partial_index_contains_the_rows_that_its_rule_selects(table, index, rule):
    [found] = [one for one in table.__table__.indexes if one.name == index]
    contained = str(found.dialect_options["postgresql"]["where"])
    assert contained == as_text(rule).replace(f"{table.__tablename__}.", "")
