"""Models that think or refuse parameters, in a real batch: no upload fails because of it."""

import pytest

from batch_pipeline.testing.model_server import Thinking

from .conftest import PICTURES, both_dialects, failures
from .test_model_server_faults import assert_nothing_burned

STRICT = {"max_tokens", "temperature", "seed", "encoding_format", "chat_template_kwargs", "think"}


@pytest.mark.parametrize(
    "thinking",
    [Thinking("template"), Thinking("effort"), Thinking("none"), Thinking("none", tokens=50)],
    ids=["switched off", "thinks little", "gets more tokens", "fits"],
)
def test_a_batch_for_a_model_that_thinks_completes_at_the_first_attempt(
    work, model_server, thinking
):
    work = work(max_concurrent_uploads=4)
    batch_id = work.submit(*PICTURES, "ball_on_meadow.mp4")
    model_server.thinking = thinking

    result = work.run(batch_id)

    assert result.success
    assert work.counts(batch_id) == ("completed", len(PICTURES) + 1, 0)
    assert set(work.column(batch_id, "attempts")) == {1}


@both_dialects
def test_a_model_that_only_thinks_stops_the_run_and_fails_no_upload(work, model_server):
    work = work(max_concurrent_uploads=2)
    batch_id = work.submit(*PICTURES)
    model_server.thinking = Thinking("none", tokens=100_000)

    result = work.run(batch_id)

    assert sorted(failures(result))[0].startswith("model_thinks: ")
    assert "BATCH_PIPELINE_VISION_OPTIONS" in sorted(failures(result))[0]
    assert_nothing_burned(work, batch_id)


@pytest.mark.parametrize("dialect", ["openai"], indirect=True)
@pytest.mark.parametrize("thinking", [None, Thinking("effort", shown="hidden")])
def test_a_batch_for_a_strict_hosted_model_completes_at_the_first_attempt(
    work, model_server, thinking
):
    work = work(max_concurrent_uploads=4)
    batch_id = work.submit(*PICTURES)
    model_server.refused_parameters, model_server.thinking = STRICT, thinking

    result = work.run(batch_id)

    assert result.success
    assert set(work.column(batch_id, "attempts")) == {1}
    assert set(work.column(batch_id, "error_kind")) == {None}
