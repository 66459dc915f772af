"""JSON log lines of a real run: each names its run, batch and upload."""

import json

from structlog.contextvars import get_contextvars

from batch_pipeline.testing.model_server import Fault, ScriptedModelServer


def test_every_line_of_a_run_is_json_and_those_of_an_upload_name_it(work, capfd):
    with ScriptedModelServer(vision_faults=[Fault.REFUSED_INPUT_400]) as model_server:
        set_up = work(log_format="json", analyzer="ollama", ollama_host=model_server.ollama_url)
        batch_id = set_up.submit("fog.webp", "sea.jpg")
        tick = set_up.tick()
        capfd.readouterr()
        [result] = set_up.run_what_is_asked_for(tick)

    assert result.success is False
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    of_run = [line for line in lines if line.get("run_id") == result.run_id]
    assert {line["batch_id"] for line in of_run} == {str(batch_id)}
    [failed] = [row for row in set_up.uploads(batch_id) if row.processing_status == "failed"]
    of_steps = [line for line in of_run if line.get("step", "").startswith("process_upload[")]
    assert {line["upload_id"] for line in of_steps} == {str(failed.id)}
    assert not get_contextvars()
