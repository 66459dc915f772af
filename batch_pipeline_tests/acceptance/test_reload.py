"""A reload of the code location: run workers are forked from a new process, with the new code."""

import shutil
import sys
from contextlib import suppress

import psutil
import pytest

from batch_pipeline_tests.acceptance.conftest import MEDIA
from batch_pipeline_tests.patience import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="run workers are forked on Linux only"),
]

RELOAD = """mutation { reloadRepositoryLocation(
    repositoryLocationName: "batch_pipeline.definitions"
  ) { __typename ... on WorkspaceLocationEntry { loadStatus } } }"""


def fork_servers():
    """Return the processes from which run workers of the stack are forked."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            forks = "multiprocessing.forkserver" in " ".join(process.cmdline())
            # A worker has the command line of the process that it is forked from.
            if forks and process.parent().cmdline() != process.cmdline():
                found.append(process)
    return found


def processed_by_a_run(stack, folder, name):
    """Submit a picture that no other test has, and return the id of the run that processed it."""
    shutil.copy(MEDIA / "sea.jpg", folder / name)
    with (folder / name).open("ab") as file:
        file.write(name.encode())  # not a copy of another upload
    submitted = stack.cli("submit", folder / name, "--wait")
    assert submitted["status"]["successful_uploads"] == 1
    return stack.graphql.ended_run_of(submitted["batch_id"])["runId"]


def test_after_a_reload_workers_are_forked_from_a_new_process_and_still_log(stack, tmp_path):
    [before] = fork_servers()
    processed_by_a_run(stack, tmp_path, "before.jpg")
    assert fork_servers() == [before]

    reloaded = stack.graphql(RELOAD)["reloadRepositoryLocation"]

    assert reloaded == {"__typename": "WorkspaceLocationEntry", "loadStatus": "LOADED"}
    # What was imported before stays in the old process, which ends.
    wait_until(lambda: not before.is_running(), "the process with the old code ends")
    run = processed_by_a_run(stack, tmp_path, "after.jpg")
    [after] = fork_servers()
    assert after.create_time() > before.create_time()
    [log] = stack.home.glob(f"**/{run}/compute_logs/*.err")
    assert log.stat().st_size
