"""The sensor that sends notifications. It is separate so that runs never wait for a delivery.

``services/notifications`` decides what is sent, and keeps messages that could not be delivered.
"""

import dagster as dg

from batch_pipeline.services.notifications.sending import send_due, targets_of
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings

#: How often events are sent, and how often they are discarded if there is no target (seconds).
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
        """Send the messages that are due; never launches a run."""
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
