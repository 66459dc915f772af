"""Deletes what Dagster stores about a batch or an upload: runs, events, checks, ticks, logs.

Dagster's own API deletes a run with its events. Dagster keeps the rest for ever: events that belong
to no run (the reports of a sensor, with names and pictures), results of checks, the last event of
each asset, texts of ticks, and plans of re-executed runs. This module finds them by the id of the
batch and deletes them with SQL. Every method may be repeated.
"""

import importlib.resources
import json
import os
import re
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from sqlalchemy import text

from batch_pipeline.errors import NotFoundError, RefusedError
from batch_pipeline.orchestration.assets import BATCHES
from batch_pipeline.orchestration.batch_checks import evaluations_of
from batch_pipeline.orchestration.batch_reports import report_of
from batch_pipeline.orchestration.dagster_storage.grouped_event_log import GroupedEventLogStorage
from batch_pipeline.orchestration.run_ends import ENDED_RUN
from batch_pipeline.orchestration.tags import BATCH_TAG, USER_TAG
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_summary import batch_summary
from batch_pipeline.services.short_ids import short
from batch_pipeline.settings import Settings

#: The file with the output of the stack of `make demo`, in the same folder as Dagster's own files.
_CONSOLE = "dagster-dev.log"
#: The beginning of an entry in this file: a time, or a JSON object.
_ENTRY = re.compile(rb"(?:\x1b\[[0-9;]*m)*(?:\d{4}-\d\d-\d\d[ T]|\{)")
#: If a tick has not ended after this time, its daemon has died (seconds).
_TICK_SECONDS = 60.0
_NOT_ENDED = [status for status in dg.DagsterRunStatus if status not in ENDED_RUN]

_TAGGED_RUNS = text("""
    SELECT run_id FROM run_tags
    WHERE key IN (:batch_tag, 'dagster/partition') AND value = :batch_id
""").bindparams(batch_tag=BATCH_TAG)
#: A run that was launched by hand and did not start has no tag. Its config names the batch, but the
#: name of another batch may contain the id, too, see `_processes`.
_RUNS_NAMING_BATCH = text("""
    SELECT run_id FROM runs
    WHERE pipeline_name = 'process_batch' AND strpos(run_body, :batch_id) > 0
""")
_BATCHES_OF_USER = text("""
    SELECT DISTINCT of_batch.value FROM run_tags AS of_user
    JOIN run_tags AS of_batch ON of_batch.run_id = of_user.run_id AND of_batch.key = :batch_tag
    WHERE of_user.key = :user_tag AND of_user.value = :user_id
""").bindparams(batch_tag=BATCH_TAG, user_tag=USER_TAG)
#: Reports of sensors have the batch as their partition. Results of checks only contain its id.
_EVENTS_OF_BATCH = """
    SELECT id FROM event_logs
    WHERE asset_key IS NOT NULL AND partition = :batch_id
    UNION
    SELECT id FROM event_logs
    WHERE run_id = '' AND partition IS NULL AND strpos(event, :batch_id) > 0
"""
_EVENTS_OF_RUNS = "SELECT id FROM event_logs WHERE run_id = ANY(:runs)"
#: The key of the step of an upload ends with the id of the upload: ``process_upload[sea_jpg__…]``.
_RUNS_WITH_STEPS = text("""
    SELECT DISTINCT run_id, hex
    FROM event_logs, substring(step_key FROM '__([0-9a-f]{32})[]]$') AS hex
    WHERE hex = ANY(:hexes) AND run_id <> ''
""")
#: Events of the upload's own step, and other events that concern only this upload. Events about
#: several steps are kept, but `_without_upload` removes the name of this step.
_EVENTS_OF_UPLOAD = """
    SELECT id FROM event_logs
    WHERE run_id = ANY(:runs) AND (
        strpos(step_key, :hex) > 0
        OR (strpos(event, :hex) > 0 OR strpos(event, :upload_id) > 0)
        AND (dagster_event_type IS NULL
            OR dagster_event_type IN ('STEP_OUTPUT', 'HANDLED_OUTPUT', 'ASSET_MATERIALIZATION',
                'ASSET_OBSERVATION'))
    )
"""
_RUNLESS_OF_BATCH = f"SELECT id FROM event_logs WHERE run_id = '' AND id IN ({_EVENTS_OF_BATCH})"  # noqa: S608
_NAMING_UPLOAD = text("""
    SELECT id, event FROM event_logs WHERE run_id = ANY(:runs) AND strpos(event, :hex) > 0
""")
_REPLACE_EVENT = text("UPDATE event_logs SET event = :event WHERE id = :id")
_CHECKS = "FROM asset_check_executions WHERE run_id = ANY(:runs) OR partition = :batch_id"
_COUNT_CHECKS = text(f"SELECT count(*) {_CHECKS}")
_DELETE_CHECKS = text(f"DELETE {_CHECKS}")
_DELETE_TAGS = text("DELETE FROM asset_event_tags WHERE event_id = ANY(:events)")
_DELETE_EVENTS = text("DELETE FROM event_logs WHERE id = ANY(:events)")
#: Afterwards Dagster reads the last event of the asset from the log.
_FORGET_LAST_EVENTS = text("""
    UPDATE asset_keys
    SET last_materialization = NULL, last_run_id = NULL, cached_status_data = NULL
    WHERE last_run_id = ANY(:runs) OR EXISTS (
        SELECT FROM unnest(CAST(:needles AS text[])) AS needle
        WHERE strpos(last_materialization, needle) > 0 OR strpos(cached_status_data, needle) > 0
    )
""")
_TICKS = text("""
    SELECT id, CAST(tick_body AS json) -> 'log_key' AS log_key FROM job_ticks
    WHERE status <> 'STARTED' AND EXISTS (
        SELECT FROM unnest(CAST(:needles AS text[])) AS needle WHERE strpos(tick_body, needle) > 0
    )
""")
_DELETE_TICKS = text("DELETE FROM job_ticks WHERE id = ANY(:ticks)")
#: The plan of a re-execution names the steps of the earlier run. First runs may share their plan.
_DELETE_PLAN = text("""
    DELETE FROM snapshots WHERE snapshot_id = :snapshot AND NOT EXISTS (
        SELECT FROM runs WHERE run_id <> :run_id AND strpos(run_body, :snapshot) > 0
    )
""")
_REPORTING = text("""
    SELECT id FROM job_ticks
    WHERE status = 'STARTED' AND timestamp > (now() AT TIME ZONE 'UTC') - interval '5 minutes'
        AND EXISTS (
            SELECT FROM unnest(CAST(:sensors AS text[])) AS name WHERE strpos(tick_body, name) > 0
        )
""").bindparams(
    sensors=[
        "report_ended_batches",
        "release_uploads_of_failed_runs",
        "cancel_batches_of_terminated_runs",
    ]
)


@contextmanager
def opened_history(pipeline: Pipeline) -> Iterator["DagsterHistory"]:
    """Open the storage and the logs of the Dagster instance of ``DAGSTER_HOME`` or of our home.

    Raises:
        RefusedError: its storage is not on PostgreSQL.
    """
    with _opened_instance(pipeline.settings) as instance:
        yield DagsterHistory(instance, pipeline)


@contextmanager
def _opened_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    if os.environ.get("DAGSTER_HOME"):
        with dg.DagsterInstance.get() as instance:
            yield instance
        return
    home = settings.home / "dagster"
    if (home / "dagster.yaml").exists():
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield instance
        return
    # Dagster runs elsewhere, so its logs cannot be reached. The settings name its storage.
    ours = importlib.resources.files("batch_pipeline.orchestration") / "dagster.yaml"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dagster.yaml").write_text(ours.read_text())
        with dg.DagsterInstance.from_config(folder) as instance:
            yield instance


class DagsterHistory:
    """What a Dagster instance stores; implements `services.deletion.forgetting.History`."""

    def __init__(self, instance: dg.DagsterInstance, pipeline: Pipeline) -> None:
        events, runs = instance.event_log_storage, instance.run_storage
        ticks = instance.schedule_storage
        if not (
            isinstance(events, PostgresEventLogStorage)
            and isinstance(runs, PostgresRunStorage)
            and isinstance(ticks, PostgresScheduleStorage)
        ):
            raise RefusedError(
                "Dagster's storage is not on PostgreSQL, so its events cannot be deleted: set "
                "DAGSTER_HOME to the instance that runs the pipeline (docs/deployment.md)"
            )
        self._instance, self._pipeline = instance, pipeline
        self._events, self._runs, self._ticks = events, runs, ticks
        #: Ticks that did not end although `wait_for_ticks` waited for them.
        self._dead_ticks: set[int] = set()

    def in_flight(self, batch_id: uuid.UUID) -> Sequence[str]:
        """Return the ids of the runs of a batch that have not ended."""
        chosen = dg.RunsFilter(tags={BATCH_TAG: str(batch_id)}, statuses=_NOT_ENDED)
        return [run.run_id for run in self._instance.get_runs(chosen)]

    def batches_of(self, user_id: uuid.UUID) -> Sequence[uuid.UUID]:
        """Return the batches of a user that have runs, by the tags of these runs."""
        with self._runs.connect() as connection:
            tags = connection.execute(_BATCHES_OF_USER, {"user_id": str(user_id)}).scalars().all()
        found = []
        for tag in tags:
            try:
                found.append(uuid.UUID(tag))
            except ValueError:  # a person may have written the tag
                continue
        return found

    def wait_for_ticks(self) -> None:
        """Wait until the ticks that run now have ended; they may still report deleted data."""
        deadline = time.monotonic() + _TICK_SECONDS
        awaited = self._reporting() - self._dead_ticks
        while (left := awaited & self._reporting()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._dead_ticks |= left

    def count(self, batch_id: uuid.UUID) -> Mapping[str, int]:
        """Count what `forget_batch` would delete."""
        runs = self._runs_of(batch_id)
        of = {"runs": runs, "batch_id": str(batch_id)}
        found = f"SELECT count(*) FROM ({_EVENTS_OF_RUNS} UNION {_EVENTS_OF_BATCH}) AS found"  # noqa: S608
        with self._events.index_connection() as connection:
            events = connection.execute(text(found), of).scalar_one()
            checks = connection.execute(_COUNT_CHECKS, of).scalar_one()
        with self._ticks.connect() as connection:
            ticks = connection.execute(_TICKS, {"needles": _needles(batch_id, runs)}).all()
        return {
            "runs": len(runs),
            "events": events,
            "checks": checks,
            "ticks": len(ticks),
            "partitions": self._instance.has_dynamic_partition(str(BATCHES.name), str(batch_id)),
        }

    def forget_batch(self, batch_id: uuid.UUID) -> Mapping[str, int]:
        """Delete runs, events, partition and logs of a batch; returns the number of each kind."""
        runs = self._runs_of(batch_id)
        needles = _needles(batch_id, runs)
        of = {"runs": runs, "batch_id": str(batch_id)}
        counts: Counter[str] = Counter()
        counts += self._delete_ticks(needles)
        counts += self._delete_events(f"{_EVENTS_OF_RUNS} UNION {_EVENTS_OF_BATCH}", of)
        counts += self._delete_checks(runs, batch_id)
        for run_id in runs:
            self._delete_run(run_id)
            counts["runs"] += 1
        # A sensor that has read these runs before may still report why one of them ended. Sensors
        # that start now no longer find the runs.
        self.wait_for_ticks()
        counts += self._delete_ticks(needles)
        counts += self._delete_events(_EVENTS_OF_BATCH, of)
        counts += self._delete_checks(runs, batch_id)
        self._forget_last_events(runs, [str(batch_id)])
        self._blank_console(needles)
        name = str(BATCHES.name)
        if self._instance.has_dynamic_partition(name, str(batch_id)):
            self._instance.delete_dynamic_partition(name, str(batch_id))
            counts["partitions"] += 1
        return counts

    def runs_with(self, upload_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, Sequence[str]]:
        """Find the runs that have a step for each of these uploads.

        No index helps, so the log is read once for all uploads.
        """
        found: dict[uuid.UUID, list[str]] = defaultdict(list)
        with self._events.index_connection() as connection:
            of = {"hexes": [upload_id.hex for upload_id in upload_ids]}
            for row in connection.execute(_RUNS_WITH_STEPS, of):
                found[uuid.UUID(row.hex)].append(row.run_id)
        return found

    def forget_upload(
        self, upload_id: uuid.UUID, batch_id: uuid.UUID | None, runs: Sequence[str]
    ) -> Mapping[str, int]:
        """Delete what is stored about one upload, and the reports of its batch.

        `runs` are those of `runs_with`. Returns the number of each kind. Re-executions are deleted
        completely, because their plans name every step. The console output of all runs of the batch
        is deleted, too.
        """
        of = {"hex": upload_id.hex, "upload_id": str(upload_id), "batch_id": str(batch_id)}
        counts: Counter[str] = Counter()
        all_runs = {*runs, *(self._runs_of(batch_id) if batch_id else ())}
        whole = [run_id for run_id in all_runs if self._names_upload(run_id, upload_id)]
        kept = sorted(all_runs - set(whole))
        counts += self._delete_events(_EVENTS_OF_UPLOAD, of | {"runs": kept})
        with self._events.index_connection() as connection:
            for row in connection.execute(_NAMING_UPLOAD, of | {"runs": kept}).all():
                hidden = {"id": row.id, "event": _without_upload(row.event, upload_id)}
                connection.execute(_REPLACE_EVENT, hidden)
        for run_id in kept:
            self._delete_logs(run_id)
        for run_id in whole:
            self._delete_run(run_id)
            counts["runs"] += 1
        self.wait_for_ticks()  # for the same reason as in `forget_batch`
        counts += self._delete_ticks([str(upload_id), *whole])
        if batch_id:
            counts += self._delete_events(_RUNLESS_OF_BATCH, of)
        counts += self._delete_checks(whole, batch_id)
        needles = [upload_id.hex, str(upload_id), *([str(batch_id)] if batch_id else [])]
        self._forget_last_events(whole, needles)
        self._blank_console([*needles, *all_runs])
        return counts

    def forget_reports(self, batch_id: uuid.UUID) -> int:
        """Delete the events that sensors reported about a batch; returns how many."""
        counts = self._delete_events(_RUNLESS_OF_BATCH, {"batch_id": str(batch_id)})
        self._delete_checks([], batch_id)
        self._forget_last_events([], [str(batch_id)])
        return counts["events"]

    def report_again(self, batch_id: uuid.UUID) -> None:
        """Report an ended batch again."""
        pipeline = self._pipeline
        try:
            summary = batch_summary(pipeline.database, pipeline.storage, batch_id)
        except NotFoundError:
            return
        if not summary.has_ended or not summary.head["total_uploads"]:
            return
        by_partition = isinstance(self._events, GroupedEventLogStorage)
        checks = evaluations_of(batch_id, summary.verdict, by_partition=by_partition)
        for event in (*report_of(summary), *checks):
            self._instance.report_runless_asset_event(event)

    def _runs_of(self, batch_id: uuid.UUID) -> list[str]:
        of = {"batch_id": str(batch_id)}
        with self._runs.connect() as connection:
            tagged = set(connection.execute(_TAGGED_RUNS, of).scalars())
            naming = set(connection.execute(_RUNS_NAMING_BATCH, of).scalars()) - tagged
        if naming:
            runs = self._instance.get_runs(dg.RunsFilter(run_ids=sorted(naming)))
            tagged |= {run.run_id for run in runs if _processes(run, batch_id)}
        return sorted(tagged)

    def _reporting(self) -> set[int]:
        with self._ticks.connect() as connection:
            return set(connection.execute(_REPORTING).scalars())

    def _delete_events(self, which: str, of: Mapping[str, Any]) -> Counter[str]:
        """Delete the events that a statement selects, and their rows in the tables of assets."""
        with self._events.index_connection() as connection:
            events = list(connection.execute(text(which), of).scalars())
            connection.execute(_DELETE_TAGS, {"events": events})
            connection.execute(_DELETE_EVENTS, {"events": events})
        return Counter(events=len(events))

    def _delete_checks(self, runs: Sequence[str], batch_id: uuid.UUID | None) -> Counter[str]:
        with self._events.index_connection() as connection:
            of = {"runs": list(runs), "batch_id": str(batch_id)}
            return Counter(checks=connection.execute(_DELETE_CHECKS, of).rowcount)

    def _forget_last_events(self, runs: Sequence[str], needles: Sequence[str]) -> None:
        with self._events.index_connection() as connection:
            of = {"runs": list(runs), "needles": list(needles)}
            connection.execute(_FORGET_LAST_EVENTS, of)

    def _delete_ticks(self, needles: Sequence[str]) -> Counter[str]:
        """Delete ticks whose text contains one of the needles, and the logs of these ticks."""
        with self._ticks.connect() as connection:
            ticks = connection.execute(_TICKS, {"needles": list(needles)}).all()
        for tick in ticks:
            if tick.log_key:
                self._instance.compute_log_manager.delete_logs(log_key=tick.log_key)
        with self._ticks.connect() as connection:
            connection.execute(_DELETE_TICKS, {"ticks": [tick.id for tick in ticks]})
        return Counter(ticks=len(ticks))

    def _names_upload(self, run_id: str, upload_id: uuid.UUID) -> bool:
        """Tell whether a run names an upload, or re-executes a run that processed it."""
        run = self._instance.get_run_by_id(run_id)
        if run is None:
            return False
        asked = f"{run.run_config} {run.step_keys_to_execute}"
        return bool(run.parent_run_id) or upload_id.hex in asked or str(upload_id) in asked

    def _delete_run(self, run_id: str) -> None:
        """Delete a run, its events and logs, and its plan if the run is a re-execution."""
        run = self._instance.get_run_by_id(run_id)
        if run and run.parent_run_id and run.execution_plan_snapshot_id:
            plan = {"snapshot": run.execution_plan_snapshot_id, "run_id": run_id}
            with self._runs.connect() as connection:
                connection.execute(_DELETE_PLAN, plan)
        self._delete_logs(run_id)
        self._instance.delete_run(run_id)

    def _delete_logs(self, run_id: str) -> None:
        """Delete the console output of a run, if it is on this machine."""
        self._instance.compute_log_manager.delete_logs(prefix=[run_id])

    def _blank_console(self, needles: Sequence[str]) -> None:
        """Overwrite with blanks what the stack printed about runs. The stack may go on printing."""
        file = Path(self._instance.root_directory) / _CONSOLE
        wanted = [needle.encode() for needle in needles]
        if not file.exists():
            return
        with file.open("r+b") as console:
            position, is_meant = 0, False
            for line in console.read().splitlines(keepends=True):
                if _ENTRY.match(line):
                    is_meant = False
                # A line that begins no entry (a stack trace) belongs to the entry before it.
                is_meant = is_meant or any(needle in line for needle in wanted)
                if is_meant:
                    console.seek(position)
                    console.write(b" " * len(line.rstrip(b"\r\n")))
                position += len(line)


def _processes(run: dg.DagsterRun, batch_id: uuid.UUID) -> bool:
    """Tell whether the config of a run names the batch as the one to process."""
    config: Any = run.run_config
    try:
        return bool(config["ops"]["load_batch"]["config"]["batch_id"] == str(batch_id))
    except (KeyError, TypeError):
        return False


def _needles(batch_id: uuid.UUID, runs: Sequence[str]) -> list[str]:
    """Return texts that name a batch in ticks and in the console: its short id, and its runs.

    The full id begins with the short id, so it is found, too.
    """
    return [short(batch_id), *runs]


def _without_upload(event: str, upload_id: uuid.UUID) -> str:
    """Return a stored event without the name of an upload's step and without its failure."""
    said = json.loads(event)
    about = (said.get("dagster_event") or {}).get("event_specific_data") or {}
    for name in ("error", "first_step_failure_event"):  # in the event that ends a run
        if name in about:
            about[name] = None
    step = rf"[A-Za-z0-9_]+__{upload_id.hex}"
    return re.sub(step, f"deleted__{uuid.UUID(int=0).hex}", json.dumps(said))
