"""Run workers are forks of a process without anything that a fork would break."""

import json
import os
import signal
import subprocess
import sys

import pytest

from batch_pipeline.model_servers import face_counter

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="run workers are forked on Linux only"),
    pytest.mark.slow,
    pytest.mark.xdist_group("warm_workers"),  # the processes of `found` are started once
]


def probe(home, **variables):
    """Load the code location like a code server, in a separate process."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DAGSTER_", "BATCH_PIPELINE_"))
    }
    code = (
        "from batch_pipeline_tests.integration.orchestration.warm_worker_probe import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"BATCH_PIPELINE_HOME": str(home)} | variables,
        capture_output=True,
        text=True,
        timeout=300,  # a quiet machine needs 15
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return probe(tmp_path_factory.mktemp("home"))


def test_the_process_that_workers_are_forked_from_has_one_thread_no_connection_no_open_file(found):
    assert found["way"] == "forkserver"
    assert found["threads"] == 1
    [listener] = found["sockets"]  # the code server requests forks here
    assert "listener-" in listener
    assert found["files"] == []


def test_a_worker_has_the_code_location_and_nothing_that_was_opened_before_it(found):
    worker = found["worker"]
    assert found["is_of_fork_server"]
    assert worker["not_imported"] == []
    opened = ("pipelines", "analyzers", "engines", "fsspec_loop")
    assert [worker[name] for name in opened] == [0, 0, 0, False]
    assert worker["threads"] == 1


def test_a_worker_asks_for_huge_pages(found):
    if found["worker"]["huge_pages"] is None:
        pytest.skip("the system gives huge pages to all processes or to none")
    assert found["worker"]["huge_pages"]


def test_the_models_that_are_used_are_loaded_once_for_all_workers(found, tmp_path):
    assert found["worker"]["models"] == [1, face_counter.is_installed(), 1]
    assert found["worker"]["clients"] == []
    other = probe(
        tmp_path,
        BATCH_PIPELINE_ANALYZER="ollama",
        BATCH_PIPELINE_VISION_MODEL="any",
        BATCH_PIPELINE_EMBEDDING_MODEL="any",
    )
    assert other["worker"]["models"] == [0, 0, 0]
    assert other["worker"]["clients"] == ["ollama"]
    assert other["threads"] == other["worker"]["threads"] == 1


def test_the_patterns_of_refusals_are_compiled_once_for_all_workers(found):
    assert found["worker"]["refusals"] == 1


def test_a_worker_receives_the_signals_that_its_fork_server_ignores(found):
    assert found["outlives_signals"]
    assert (found["worker"]["sigterm"], found["worker"]["sigint"]) == (True, True)


def test_a_worker_that_is_forked_during_a_stop_ends_as_the_others_do(found):
    assert found["late"] == -signal.SIGTERM


def test_a_code_server_terminates_a_run_whose_worker_was_killed_without_waiting_for_it(found):
    assert found["wakes_killed"]


def test_a_code_server_reports_ended_workers_also_after_an_error(found):
    assert found["outlives_errors"]


def test_the_code_server_learns_how_a_worker_ended(found):
    assert found["exit_codes"] == [0, 3, -9]


def test_a_worker_ends_as_an_interpreter_does_so_that_it_gives_back_its_slots_for_model_calls(
    found,
):
    assert found["runs_exit_functions"]


def test_a_worker_whose_fork_server_is_killed_lives_and_the_next_run_gets_another_one(found):
    assert found["alive_without_fork_server"]
    assert not found["alive_at_the_end"]
    assert found["from_another_fork_server"] == 4


def test_a_setting_makes_workers_be_spawned_as_dagster_does(tmp_path):
    assert probe(tmp_path, BATCH_PIPELINE_WARM_RUN_WORKERS="false") == {
        "way": "spawn",
        "outlives_errors": True,
    }
