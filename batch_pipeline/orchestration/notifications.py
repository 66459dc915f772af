"""The sensor that sends notifications; apart from the one that launches runs, which waits for none.

``services/notifications`` decides what is sent, and keeps what could not be.
"""

import dagster as dg

from batch_pipeline.services.notifications.sending import send_due, targets_of
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings

#: How soon an event is told, and how soon it is forgotten if there is nobody to tell (seconds).
INTERVAL_SECONDS, IDLE_INTERVAL_SECONDS = 10, 60


def build_notifications(settings: Settings) -> dg.SensorDefinition:
    """Build the sensor; without targets it is evaluated less often."""

    @dg.sensor(
        minimum_interval_seconds=INTERVAL_SECONDS
        if targets_of(settings)
        else IDLE_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={"batch_pipeline"},
        description="Sends webhooks, chat messages and mail about ended batches and outages.",
    )
    def notifications(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        """Send what is due; launches nothing."""
        pipeline: Pipeline = context.resources.batch_pipeline
        delivered, failed = send_due(pipeline.database, pipeline.settings)
        if failed:
            context.log.warning(
                "notifications not delivered: %s (`batch-pipeline notify --list`)", failed
            )
        if not targets_of(pipeline.settings):
            return dg.SkipReason(
                "there is no target: BATCH_PIPELINE_WEBHOOK_URLS and NOTIFY_URLS are not set"
            )
        return dg.SkipReason(f"notifications delivered: {delivered}, not delivered: {failed}")

    return notifications
