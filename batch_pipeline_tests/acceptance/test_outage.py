"""The model server stops in mid-batch and comes back; the batch continues by itself."""

import itertools
import time

import pytest

from batch_pipeline.demo import running_stack
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_status import batch_status
from batch_pipeline.settings import load_settings
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline_tests.patience import promised, wait_until

from .conftest import MEDIA, GraphQl

FILES = ["fog.webp", "lighthouse.gif", "sea.jpg", "city.jpg", "night.jpg", "forest.webp"]
#: Long enough to see a storm of runs, and longer than the pause of the uploads.
OUTAGE_SECONDS = 25


@pytest.fixture
def model_server():
    with ScriptedModelServer() as server:
        yield server


@pytest.mark.slow
@pytest.mark.proof
def test_work_resumes_by_itself_within_a_minute_of_the_servers_return(
    model_server, tmp_path, monkeypatch
):
    for name, value in {
        "HOME": str(tmp_path),
        "ANALYZER": "ollama",
        "OLLAMA_HOST": model_server.ollama_url,
    }.items():
        monkeypatch.setenv(f"BATCH_PIPELINE_{name}", value)
    settings = load_settings()
    pipeline = Pipeline(settings)
    model_server.play("vision", itertools.repeat(Fault.HANG))
    with running_stack(settings) as stack:
        batch_id = submit(
            [MEDIA / name for name in FILES],
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=settings,
        ).batch_id
        assert batch_id

        def uploads():
            return batch_status(pipeline.database, batch_id)["uploads"]

        def column(name):
            return {upload[name] for upload in uploads()}

        wait_until(lambda: len(model_server.calls_of("vision")) == 4, "four calls in flight")
        model_server.stop()
        wait_until(lambda: column("processing_status") == {"pending"}, "the run ends early")
        time.sleep(OUTAGE_SECONDS)
        assert column("processing_status") == {"pending"}
        assert column("attempts") == {0}
        assert column("error_kind") == {"model_server_down"}
        launched = GraphQl(stack.url).runs_of(str(batch_id))
        assert len(launched) <= 2, "runs were launched while the server was down"

        model_server.play("vision", [])
        calls = len(model_server.calls)
        model_server.start()
        returned = time.monotonic()
        wait_until(lambda: len(model_server.calls) > calls, "the first call")
        resumed = time.monotonic() - returned
        wait_until(lambda: column("processing_status") == {"completed"}, "all is done")
        print(f"resumed {resumed:.0f} s after the return of the server")
        assert resumed < promised(60)
        assert column("attempts") == {1}
    pipeline.close()
