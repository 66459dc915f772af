"""Re-executed runs reserve their uploads before the first step.

A first run reserves uploads in `load_batch`. That step has succeeded, so *Re-execute from failure*
leaves it out. Without a reservation, an upload would stay ``failed`` until its own step starts: a
pause or an outage before that would end the run without it, and nothing would process it later.
"""

from collections.abc import Iterator

from dagster import DagsterEvent, Executor

from batch_pipeline.executor.dagster_internals import ExecutionPlan, PlanOrchestrationContext
from batch_pipeline.orchestration.ops import batch_of_config, upload_id_of
from batch_pipeline.services.pipeline import shared_pipeline
from batch_pipeline.settings import Settings
from batch_pipeline.wording import counted


def reserving(executor: Executor, settings: Settings) -> Executor:
    """Let an executor reserve the uploads of a re-executed run before it starts a step.

    An executor begins once per run, in the run worker. Steps and resources may begin many times:
    with Celery and with processes, each step has its own. If the database does not answer, the run
    fails with that reason, and the uploads stay as they are.
    """
    execute = executor.execute

    def reserve_and_execute(
        plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        _reserve(plan_context, execution_plan, settings)
        yield from execute(plan_context, execution_plan)

    # The object stays the same, because dagster-celery reads its other attributes.
    executor.execute = reserve_and_execute  # type: ignore[method-assign]
    return executor


def _reserve(context: PlanOrchestrationContext, plan: ExecutionPlan, settings: Settings) -> None:
    # At the start, only a plan that was made from an earlier run has steps of uploads.
    keys = [step.get_mapping_key() for step in plan.get_steps_to_execute_in_topo_order()]
    upload_ids = [upload_id_of(key) for key in keys if key]
    if not upload_ids:
        return
    loaded = shared_pipeline(settings).states.load_batch(
        batch_of_config(context.run_config),
        context.run_id,
        upload_ids=upload_ids,
        limit=len(upload_ids),
    )
    taken = len(loaded.reserved) if loaded else 0
    context.log.info("executed again: took %s", counted(taken, "upload"))
