#!/usr/bin/env python3
"""Puts one fault at a time into a copy of the package, and checks that a fast test finds it.

    scripts/mutants.py [NAME…]

A mutant replaces code that keeps a promise by code that breaks it. The checkout is never changed.
The script prints a table. It exits with 1 if a mutant survived, if the text of a mutant is no
longer found, or if a test fails without any mutant.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from batch_pipeline.database.embedded_server import embedded_server_url, stop_server

ROOT = Path(__file__).parents[1]
PACKAGE = "batch_pipeline"
TEST_DATABASE_URL = "BATCH_PIPELINE_TEST_DATABASE_URL"
#: The parts of the checkout that tests read.
COPIED = (PACKAGE, "batch_pipeline_tests", "examples", "pyproject.toml", "dagster.yaml")
#: Timeouts of a test and of all tests (seconds). A mutant that makes a test hang counts as found.
LONGEST_TEST, LONGEST_TESTS = 90, 600

STATES, DISPATCH = "services/states", "services/dispatch"
OF_STATES = "integration/services/test_upload_states.py"
OF_BACKLOG = "integration/services/test_backlog.py"
OF_TURNS = "unit/services/test_turns.py"
OF_FLOOD = "integration/services/test_progress_flood.py"
OF_SLOTS = "integration/services/test_shared_call_slots.py"
OF_WRITER = "unit/orchestration/test_group_writer.py"
OF_EXECUTOR = "integration/executor/test_concurrency.py"
OF_ENDINGS = "integration/executor/test_endings.py"
OF_INTERRUPTS = "integration/executor/test_interrupts_and_re_execution.py"
OF_KEEPER = "integration/services/test_claim_keeper.py"
OF_PROGRESS = "integration/services/test_batch_progress.py"
OF_PAUSES = "integration/services/test_pauses.py"
OF_PAUSING = "integration/orchestration/test_pausing.py"
OF_ASKED = "integration/services/test_asked_slices.py"


class Mutant(NamedTuple):
    """A fault: in a file of the package, `text` is replaced by `instead`. A test should find it."""

    name: str
    file: str
    text: str
    instead: str
    tests: str
    """A file of fast tests, or one test of it, which takes a second instead of a minute."""


MUTANTS = (
    Mutant(
        "load_batch does not raise the token",
        f"{STATES}/upload_states.py",
        "owner_run_id=run_id,\n                    claim_token=Upload.claim_token + 1,",
        "owner_run_id=run_id,",
        f"{OF_STATES}::test_two_workers_of_one_run_have_different_tokens",
    ),
    Mutant(
        "start does not raise the token",
        f"{STATES}/upload_statements.py",
        "claim_token=Upload.claim_token + 1,",
        "claim_token=Upload.claim_token,",
        f"{OF_STATES}::test_two_workers_of_one_run_have_different_tokens",
    ),
    Mutant(
        "uploads are changed with any token",
        f"{STATES}/upload_statements.py",
        "Upload.claim_token == token,",
        "Upload.claim_token >= token,",
        f"{OF_STATES}::test_two_workers_of_one_run_have_different_tokens",
    ),
    Mutant(
        "a claim is taken over while its lease lives",
        f"{STATES}/upload_statements.py",
        'Upload.owner_run_id == bindparam("of_run"), _EXPIRED)',
        'Upload.owner_run_id == bindparam("of_run"), _EXPIRED, true())',
        f"{OF_STATES}::test_an_upload_held_by_a_live_run_is_not_taken",
    ),
    Mutant(
        "a recount does not lock the batch",
        f"{STATES}/transitions.py",
        ".where(UploadBatch.id == batch_id).with_for_update(key_share=True)\n    ).one_or_none()",
        ".where(UploadBatch.id == batch_id)\n    ).one_or_none()",
        f"{OF_STATES}::test_a_recount_waits_for_an_end_that_is_not_committed_yet",
    ),
    Mutant(
        "a pending batch without uploads ends",
        f"{STATES}/transitions.py",
        " & ((counts.total > 0) | (status != BatchStatus.PENDING))",
        "",
        f"{OF_STATES}::test_a_batch_that_is_still_being_filled_does_not_end",
    ),
    Mutant(
        "an upload that ends does not reset the died runs",
        f"{STATES}/transitions.py",
        "            died_runs=0 if successful + failed > 0 else UploadBatch.died_runs,\n",
        "",
        f"{OF_BACKLOG}::test_an_upload_that_ends_resets_the_count_of_died_runs",
    ),
    Mutant(
        "a released attempt counts",
        f"{STATES}/upload_states.py",
        "                attempts=Upload.attempts - 1,\n",
        "",
        f"{OF_STATES}::test_a_released_attempt_does_not_count",
    ),
    Mutant(
        "a failed upload is not announced in the counters",
        f"{STATES}/upload_states.py",
        "count_failed(transaction.connection, row.batch_id, 1)\n            if progress:",
        "count_failed(transaction.connection, row.batch_id, 1)\n            if False:",
        f"{OF_PROGRESS}::test_an_upload_that_fails_is_announced_with_its_batch",
    ),
    Mutant(
        "a quarantined upload is not announced in the counters",
        f"{STATES}/backlog.py",
        "if progress := count_failed(transaction.connection, batch_id, failed):\n"
        "                transaction.announce(progress, progress.user_id)",
        "count_failed(transaction.connection, batch_id, failed)",
        f"{OF_PROGRESS}::test_an_upload_that_fails_is_announced_with_its_batch",
    ),
    Mutant(
        "uploads are rescued while their lease lives",
        f"{STATES}/backlog.py",
        "lease_expired(self._lease_seconds)),",
        "lease_expired(self._lease_seconds), true()),",
        f"{OF_STATES}::test_rescue_returns_uploads_of_ended_runs_and_of_expired_leases_alone",
    ),
    Mutant(
        "a died run counts on a batch that has ended",
        f"{STATES}/backlog.py",
        ".where(UploadBatch.id == batch_id, UploadBatch.status.in_(OPEN_BATCH))",
        ".where(UploadBatch.id == batch_id)",
        f"{OF_BACKLOG}::test_a_run_that_dies_after_its_batch_has_ended_changes_nothing",
    ),
    Mutant(
        "old batches are recounted",
        f"{STATES}/backlog.py",
        "UploadBatch.updated_at > func.now() - interval(RECOUNT_SECONDS),",
        "true(),",
        f"{OF_BACKLOG}::test_batches_that_ended_long_ago_and_that_nobody_changed_are_not_counted_again",
    ),
    Mutant(
        "failures in cancelled batches are retried",
        f"{STATES}/backlog.py",
        "UploadBatch.id == Upload.batch_id, UploadBatch.status.in_(REDOABLE_BATCH)",
        "UploadBatch.id == Upload.batch_id",
        f"{OF_BACKLOG}::test_permanent_failures_and_those_of_cancelled_batches_are_not_opened_again",
    ),
    Mutant(
        "a released slice does not wait",
        f"{STATES}/backlog.py",
        '                    dispatch_reason="rescue",\n                    not_before=not_before,',
        '                    dispatch_reason="rescue",',
        f"{OF_BACKLOG}::test_uploads_that_a_run_ended_without_taking_wait_for_a_while",
    ),
    Mutant(
        "a lost claim is not noticed",
        f"{STATES}/claim_keeper.py",
        "                            entry.mark_lost()",
        "                            pass",
        f"{OF_KEEPER}::test_work_that_is_no_longer_wanted_is_reported_to_its_owner",
    ),
    Mutant(
        "uploads that must wait are sliced",
        f"{DISPATCH}/slices.py",
        "\n    AND (uploads.not_before IS NULL OR uploads.not_before <= now())",
        "",
        f"{OF_BACKLOG}::test_uploads_that_a_run_ended_without_taking_wait_for_a_while",
    ),
    Mutant(
        "slices of cancelled batches are offered",
        f"{DISPATCH}/slices.py",
        "WHERE {OPEN_BATCH_SQL}\n        AND {WAITING_SQL}",
        "WHERE {WAITING_SQL}",
        f"{OF_BACKLOG}::test_no_run_is_requested_for_uploads_of_a_batch_that_is_over",
    ),
    Mutant(
        "cancelled batches get new slices",
        f"{DISPATCH}/slices.py",
        ") oldest\n    WHERE {OPEN_BATCH_SQL}\n",
        ") oldest\n",
        f"{OF_BACKLOG}::test_no_run_is_requested_for_uploads_of_a_batch_that_is_over",
    ),
    Mutant(
        "a suspect is not alone in its slice",
        f"{DISPATCH}/slices.py",
        "CASE WHEN suspect THEN 1 ELSE :size END",
        "CASE WHEN suspect THEN :size ELSE :size END",
        f"{OF_BACKLOG}::test_an_upload_in_progress_when_its_worker_died_gets_a_run_of_its_own",
    ),
    Mutant(
        "paused uploads are started",
        f"{STATES}/upload_statements.py",
        "                UploadBatch.status == BatchStatus.FAILED,\n                PAUSED,",
        "                UploadBatch.status == BatchStatus.FAILED,",
        f"{OF_PAUSES}::test_a_paused_upload_is_not_started_and_waits_as_it_was",
    ),
    Mutant(
        "a run is requested for a paused slice",
        f"{DISPATCH}/turns.py",
        "[slice_ for slice_ in waiting if not slice_.is_paused]",
        "waiting",
        f"{OF_PAUSING}::test_no_run_is_requested_for_a_paused_batch_and_the_tick_says_so",
    ),
    Mutant(
        "pauses are read only once",
        "services/pauses.py",
        "look is None or look.pauses or not look.is_recent",
        "look is None",
        f"{OF_PAUSES}::test_a_call_checks_pauses_at_most_half_a_second_after_the_last_check",
    ),
    Mutant(
        "a call that waits for its slot ignores a pause",
        "model_servers/server_group.py",
        "lambda: self._usable(failed, caller.paused), caller.cancelled",
        "lambda usable=self._usable(failed, caller.paused): usable, caller.cancelled",
        f"{OF_PAUSING}::test_calls_that_wait_for_their_turn_give_up_while_the_one_in_flight_goes_on",
    ),
    Mutant(
        "a run that finds a pause keeps its slice",
        f"{STATES}/upload_states.py",
        "                    _release_waiting(connection, batch_id, slice_number)\n",
        "                    pass\n",
        f"{OF_PAUSING}::test_a_run_that_was_launched_before_the_pause_releases_its_slice",
    ),
    Mutant(
        "a resume wakes nobody",
        "services/pauses.py",
        "            signal_work(connection)\n",
        "",
        f"{OF_PAUSES}::test_a_resume_wakes_the_sensor",
    ),
    Mutant(
        "priorities change nothing",
        f"{DISPATCH}/turns.py",
        "EARLIER_SECONDS.get(self.priority, 0.0)",
        "0.0",
        OF_TURNS,
    ),
    Mutant(
        "a user gets a run for every upload that ends",
        f"{DISPATCH}/turns.py",
        "return min(self.per_run, -(-self.per_user // 2))",
        "return 1",
        OF_TURNS,
    ),
    Mutant(
        "sensors do not wait for each other",
        f"{DISPATCH}/asked_slices.py",
        '        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})\n',
        "",
        OF_ASKED,
    ),
    Mutant(
        "users do not take turns",
        f"{DISPATCH}/turns.py",
        "batch.last_turn = self.last_turn = now",
        "batch.last_turn = now",
        OF_TURNS,
    ),
    Mutant(
        "runs in flight do not count",
        f"{DISPATCH}/turns.py",
        " + SECONDS_PER_RUN_IN_FLIGHT * runs",
        "",
        OF_TURNS,
    ),
    Mutant(
        "every stage is announced",
        "services/progress/publishing.py",
        'return self._filter.admits_pace(("stage", run_id))',
        "return True",
        f"{OF_FLOOD}::test_one_run_sends_no_more_than_its_burst_while_the_clock_stands_still",
    ),
    Mutant(
        "every counter is announced",
        "services/progress/publishing.py",
        'return self._filter.admits_pace(("counters", run_id))',
        "return True",
        f"{OF_FLOOD}::test_one_run_sends_no_more_than_its_burst_while_the_clock_stands_still",
    ),
    Mutant(
        "leases of call slots are not renewed",
        "services/shared_call_slots.py",
        "wanted = excluded.wanted, held = excluded.held, leased_until = excluded.leased_until,",
        "wanted = excluded.wanted, held = excluded.held,",
        f"{OF_SLOTS}::test_a_holder_of_slots_keeps_renewing_its_heartbeat",
    ),
    Mutant(
        "call slots of dead processes are not taken over",
        "services/shared_call_slots.py",
        "        AND leased_until < clock_timestamp()\n",
        "        AND false\n",
        f"{OF_SLOTS}::test_slots_of_a_process_that_is_silent_for_longer_than_its_lease_go_to_others",
    ),
    Mutant(
        "slots that other processes hold are used",
        "services/shared_call_slots.py",
        "allowed = max(0, min(share, limit - elsewhere))",
        "allowed = share",
        f"{OF_SLOTS}::test_two_processes_never_exceed_the_limit_and_the_second_gets_its_fair_share",
    ),
    Mutant(
        "a group with a refused event is dropped whole",
        "orchestration/dagster_storage/group_writer.py",
        "                for item in group:\n                    self._write_or_refuse(item)",
        "                self._write_or_refuse(group[0])",
        OF_WRITER,
    ),
    Mutant(
        "events put in during a write are lost",
        "orchestration/dagster_storage/group_writer.py",
        "                for _ in group:\n                    self._waiting.popleft()\n"
        "                self._written += len(group)",
        "                self._waiting.clear()\n                self._written = self._put_in",
        OF_WRITER,
    ),
    Mutant(
        "events are not written at exit",
        "orchestration/dagster_storage/group_writer.py",
        "            atexit.register(self._stop_at_exit)\n",
        "",
        OF_WRITER,
    ),
    Mutant(
        "steps are fetched ahead despite pools and priorities",
        "executor/threaded.py",
        "return 0 if asked_in_order else _ROUNDS_AHEAD",
        "return _ROUNDS_AHEAD",
        f"{OF_EXECUTOR}::test_a_step_of_higher_priority_overtakes_steps_that_were_ready_before",
    ),
    Mutant(
        "steps are fetched ahead despite pools",
        "executor/threaded.py",
        "step.pool or in_order",
        "in_order",
        f"{OF_EXECUTOR}::test_a_step_takes_its_place_in_a_pool_when_it_starts_and_not_before",
    ),
    Mutant(
        "steps are started although the run should end",
        "executor/threaded.py",
        "if not self._interrupt.is_set():\n                    yield from self._start_steps()",
        "yield from self._start_steps()",
        f"{OF_ENDINGS}::test_no_step_is_started_once_the_run_should_end",
    ),
    Mutant(
        "a signal may let the loop wait for ever",
        "executor/step_threads.py",
        "Queue[StepReport] = Queue()",
        "SimpleQueue[StepReport] = SimpleQueue()",
        f"{OF_INTERRUPTS}::test_a_signal_whose_handler_ends_after_the_wait_for_reports_does_not_"
        "prolong_the_wait",
    ),
)


def main(names: Iterable[str]) -> int:
    """Try the mutants of these names, or all; returns the exit code."""
    wanted = set(names) or {mutant.name for mutant in MUTANTS}
    mutants = [mutant for mutant in MUTANTS if mutant.name in wanted]
    if unknown := wanted - {mutant.name for mutant in mutants}:
        sys.exit(f"there is no mutant {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy / name)
        # All mutants share one server.
        environment = os.environ | {
            TEST_DATABASE_URL: embedded_server_url(copy / "server"),
            "PYTHONPATH": str(copy),
            # Python could use the bytecode of one mutant for the next one, if both files have the
            # same size and were written in the same second.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        try:
            _check_that_the_copy_is_imported(copy, environment)
            tests = sorted({mutant.tests for mutant in mutants})
            if failed := _failed_test(copy, environment, tests):
                sys.exit(f"{failed} fails without a mutant: fix that first")
            killed = sum(_try(copy, environment, mutant) for mutant in mutants)
        finally:
            stop_server(copy / "server", although_used=True)
    print(f"{killed} of {len(mutants)} mutants killed")
    return int(killed < len(mutants))


def _try(copy: Path, environment: dict[str, str], mutant: Mutant) -> bool:
    """Print the result of a mutant; return true if a test found it."""
    path = copy / PACKAGE / mutant.file
    original = path.read_text()
    if original.count(mutant.text) != 1:
        outcome, killed = f"NOT TRIED: its text occurs {original.count(mutant.text)} times", False
    else:
        path.write_text(original.replace(mutant.text, mutant.instead))
        failed = _failed_test(copy, environment, [mutant.tests])
        path.write_text(original)
        outcome, killed = failed or "SURVIVED", bool(failed)
    print(f"{mutant.name:<58}  {outcome}", flush=True)
    return killed


def _failed_test(copy: Path, environment: dict[str, str], tests: Iterable[str]) -> str | None:
    """Run fast tests on the copy; return the first that failed, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-n", "0"]
    command += ["-p", "no:cacheprovider", "--tb=no", f"--timeout={LONGEST_TEST}"]
    command += [f"batch_pipeline_tests/{test}" for test in tests]
    try:
        ran = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_TESTS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {LONGEST_TESTS} s"
    if ran.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S+/(test_\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode != 1 or not failed:
        sys.exit(f"pytest ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return failed[1]


def _check_that_the_copy_is_imported(copy: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    found = subprocess.check_output(command, cwd="/", env=environment, text=True).strip()
    if not Path(found).is_relative_to(copy):
        sys.exit(f"tests would import {found}, which is not the copy in {copy}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
