"""What Dagster expects of an event log, tested with our storage (grouped or not) and Dagster's own.

Dagster's packages do not contain its own tests of this. All tests run with three storages, so plain
dagster-postgres must pass it too. Steps read the events that they have just written: a writer in
the background is most likely to break that.
"""

import time
import uuid
from collections.abc import Callable, Iterator

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.base import EventLogCursor

from batch_pipeline.executor import threaded_executor
from batch_pipeline.testing.databases import DatabaseServer

from .conftest import NOTHING_CAPTURED

DATA_VERSION = "dagster/data_version"
STORAGES = {
    "dagster's own": "storage: {{postgres: {{postgres_url: '{url}'}}}}",
    "ours": (
        "storage: {{custom: {{"
        "module: batch_pipeline.orchestration.dagster_storage.instance_storage, "
        "class: PipelineInstanceStorage, config: {{}}}}}}"
    ),
}
STORAGES["ours, grouped"] = STORAGES["ours"]


@pytest.fixture(scope="module", params=STORAGES)
def instance(
    request: pytest.FixtureRequest,
    server: DatabaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dg.DagsterInstance]:
    home = tmp_path_factory.mktemp("dagster_home")
    with server.new_database(migrated=False) as url, pytest.MonkeyPatch.context() as patch:
        address = url.replace("postgresql://", "postgresql+psycopg2://")
        (home / "dagster.yaml").write_text(
            STORAGES[request.param].format(url=address)
            + "\ntelemetry: {enabled: false}\n"
            + NOTHING_CAPTURED
        )
        patch.setenv("BATCH_PIPELINE_DAGSTER_DATABASE_URL", url)
        patch.setenv("BATCH_PIPELINE_GROUP_EVENT_WRITES", str("grouped" in request.param))
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield instance


@pytest.fixture
def key() -> dg.AssetKey:
    """An asset of only this test."""
    return dg.AssetKey(["asset", uuid.uuid4().hex])


Body = Callable[[dg.OpExecutionContext], None]


@pytest.fixture
def run(instance: dg.DagsterInstance) -> Callable[..., dg.ExecuteInProcessResult]:
    """Runs a function as the only step of a job, or as each of several steps, in threads."""

    def run_(body: Body, *, steps: int = 1, raise_on_error: bool = True):
        @dg.op(out=dg.DynamicOut(dg.Nothing))
        def begin() -> Iterator[dg.DynamicOutput[None]]:
            for number in range(steps):
                yield dg.DynamicOutput(None, mapping_key=str(number))

        @dg.op(ins={"begun": dg.In(dg.Nothing)})
        def step(context: dg.OpExecutionContext) -> None:
            body(context)

        @dg.job(executor_def=threaded_executor.configured({"max_concurrent": 8}))
        def job() -> None:
            begin().map(step)

        return job.execute_in_process(instance=instance, raise_on_error=raise_on_error)

    return run_


def test_events_have_ids_in_the_order_of_each_step_and_pages_show_all_of_them(instance, run):
    def body(context):
        for number in range(20):
            context.log.info("line %s", number)

    result = run(body, steps=8)
    records = instance.get_records_for_run(result.run_id, limit=10_000).records
    ids = [record.storage_id for record in records]
    assert ids == sorted(set(ids))
    for step in range(8):
        entries = [
            r.event_log_entry for r in records if r.event_log_entry.step_key == f"step[{step}]"
        ]
        kinds = [entry.dagster_event_type for entry in entries if entry.is_dagster_event]
        assert kinds == [
            dg.DagsterEventType.STEP_START,
            dg.DagsterEventType.STEP_OUTPUT,
            dg.DagsterEventType.STEP_SUCCESS,
        ]
        lines = [entry.user_message for entry in entries if not entry.is_dagster_event]
        assert lines == [f"line {number}" for number in range(20)]

    paged, cursor, has_more = [], None, True
    while has_more:
        page = instance.get_records_for_run(result.run_id, cursor=cursor, limit=7)
        paged += page.records
        cursor, has_more = page.cursor, page.has_more
    assert [record.storage_id for record in paged] == ids
    newest = instance.get_records_for_run(result.run_id, limit=3, ascending=False).records
    assert [record.storage_id for record in newest] == ids[:-4:-1]
    after = EventLogCursor.from_storage_id(ids[4]).to_string()
    assert [
        r.storage_id for r in instance.get_records_for_run(result.run_id, cursor=after).records
    ] == ids[5:]
    assert len(instance.all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)) == 9
    kinds = [record.event_log_entry.dagster_event_type for record in records]
    assert kinds[-1] is dg.DagsterEventType.RUN_SUCCESS


def test_a_step_reads_its_own_events_and_those_of_earlier_steps(instance, run, key):
    partition = "p"
    instance.add_dynamic_partitions("parts", [partition])
    found = {}

    def body(context):
        storage = context.instance.event_log_storage
        context.log_event(
            dg.AssetMaterialization(key, partition=partition, tags={DATA_VERSION: "7"})
        )
        found["latest"] = context.instance.get_latest_materialization_event(key)
        context.log_event(dg.AssetMaterialization(key, partition=partition))
        found["materializations"] = context.instance.fetch_materializations(key, limit=9).records
        context.log_event(dg.AssetObservation(key))
        found["observations"] = context.instance.fetch_observations(key, limit=9).records
        context.log_event(dg.AssetMaterialization(key, partition="q"))
        found["partitions"] = storage.get_materialized_partitions(key)
        context.log_event(dg.AssetMaterialization(key, partition="r"))
        [found["record"]] = context.instance.get_asset_records([key])
        context.log_event(dg.AssetMaterialization(key, partition="s"))
        found["ids"] = storage.get_latest_storage_id_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        context.log_event(dg.AssetMaterialization(key, tags={DATA_VERSION: "8"}, partition="t"))
        found["tags"] = storage.get_event_tags_for_asset(key)
        context.log.info("line")
        found["lines"] = [e.user_message for e in context.instance.all_logs(context.run_id)]
        found["stats"] = context.instance.get_run_stats(context.run_id)
        [found["step"]] = context.instance.get_run_step_stats(context.run_id, ["step[0]"])
        found["counts"] = storage.get_asset_partitions_for_run(
            context.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        context.log_event(dg.AssetMaterialization([*key.path, "new"]))
        found["exists"] = context.instance.has_asset_key(dg.AssetKey([*key.path, "new"]))
        context.instance.add_dynamic_partitions("parts", [key.path[-1]])
        found["dynamic"] = context.instance.get_dynamic_partitions("parts")
        found["last id"] = storage.get_maximum_record_id()
        found["all ids"] = [
            r.storage_id
            for r in context.instance.get_records_for_run(context.run_id, limit=1000).records
        ]

    run(body)
    assert found["latest"].asset_materialization.tags[DATA_VERSION] == "7"
    assert len(found["materializations"]) == 2
    assert len(found["observations"]) == 1
    assert found["partitions"] == {partition, "q"}
    assert found["record"].asset_entry.last_materialization.asset_materialization.partition == "r"
    assert set(found["ids"]) == {partition, "q", "r", "s"}
    assert [tags[DATA_VERSION] for tags in found["tags"]].count("8") == 1
    assert found["lines"][-1] == "line"
    assert found["stats"].materializations == 6
    assert found["step"].start_time is not None
    assert found["counts"][key] == {partition, "q", "r", "s", "t"}
    assert found["exists"]
    assert key.path[-1] in found["dynamic"]
    assert found["last id"] == found["all ids"][-1]


def test_an_asset_shows_its_last_materialization_and_the_run_that_made_it(instance, run, key):
    other = dg.AssetKey([*key.path, "other"])

    def body(context):
        for number in range(5):
            context.log_event(dg.AssetMaterialization(key, metadata={"number": number}))
            context.log_event(dg.AssetMaterialization(other))
        context.log_event(dg.AssetObservation(key))

    first, second = run(body), run(body)
    [record] = instance.get_asset_records([key])
    last = record.asset_entry.last_materialization_record
    assert last.event_log_entry.asset_materialization.metadata["number"].value == 4
    assert record.asset_entry.last_run_id == second.run_id != first.run_id
    newest, *_ = instance.fetch_materializations(key, limit=100).records
    assert last.storage_id == newest.storage_id
    assert len(instance.fetch_materializations(key, limit=100).records) == 10
    assert len(instance.fetch_observations(key, limit=100).records) == 2


def test_a_wiped_asset_is_gone_until_it_is_materialized_again(instance, run, key):
    def body(context):
        context.log_event(dg.AssetMaterialization(key))
        context.instance.wipe_assets([key])
        assert not context.instance.has_asset_key(key)
        assert context.instance.fetch_materializations(key, limit=9).records == []
        time.sleep(0.001)  # the moment of a wipe is compared with that of an event
        context.log_event(dg.AssetMaterialization(key, metadata={"after": True}))

    run(body)
    assert instance.has_asset_key(key)
    [record] = instance.fetch_materializations(key, limit=9).records
    assert record.asset_materialization.metadata["after"].value is True


def test_the_last_evaluation_of_a_check_in_each_run_is_kept(instance, run, key):
    check = dg.AssetCheckKey(key, "check")

    def evaluation(passed):
        return dg.AssetCheckEvaluation(
            asset_key=key, check_name="check", passed=passed, metadata={"passed": passed}
        )

    def body(context):
        context.log_event(evaluation(True))
        context.log_event(evaluation(True))
        context.log_event(evaluation(False))

    first, second = run(body), run(body)
    records = instance.event_log_storage.get_asset_check_execution_history(check, limit=9)
    assert [record.run_id for record in records] == [second.run_id, first.run_id]
    assert {record.status for record in records} == {AssetCheckExecutionRecordStatus.FAILED}
    summary = instance.event_log_storage.get_asset_check_summary_records([check])[check]
    assert summary.last_check_execution_record.run_id == second.run_id
    evaluations = instance.all_logs(
        first.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    assert len(evaluations) == 3
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
    assert latest.event.dagster_event.asset_check_evaluation_data.passed is False


def test_a_failed_step_and_its_run_tell_the_same_story(instance, run):
    def body(context):
        context.log.info("before")
        raise ValueError("broken")

    result = run(body, raise_on_error=False)
    assert instance.get_run_by_id(result.run_id).status is dg.DagsterRunStatus.FAILURE
    stats = instance.get_run_stats(result.run_id)
    assert (stats.steps_succeeded, stats.steps_failed) == (1, 1)
    assert None not in {stats.start_time, stats.end_time}
    kinds = [
        entry.dagster_event_type
        for entry in instance.all_logs(result.run_id)
        if entry.is_dagster_event
    ]
    assert kinds.index(dg.DagsterEventType.STEP_FAILURE) < kinds.index(
        dg.DagsterEventType.RUN_FAILURE
    )
    changes = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1).records
    assert changes[0].run_id == result.run_id


def test_a_deleted_run_takes_its_events_along(instance, run):
    result = run(lambda context: context.log.info("line"))
    instance.delete_run(result.run_id)
    assert instance.all_logs(result.run_id) == []


def test_another_process_opens_the_same_storage(instance, run):
    result = run(lambda context: context.log.info("line"))
    reference = InstanceRef.from_dict(instance.get_ref().to_dict())
    with dg.DagsterInstance.from_ref(reference) as other:
        assert len(other.all_logs(result.run_id)) == len(instance.all_logs(result.run_id))
