"""The broker between runs and Celery workers: how both use it, and whether it answers.

A message is acknowledged when a worker begins with it, so that the broker never hands out again
what a worker died of; what is lost that way comes back by our leases. With Redis, a worker takes no
message that it cannot begin with at once, so none is lost unbegun; with RabbitMQ it fetches one
ahead, which goes to another worker if this one dies.
"""

from typing import Any, cast
from urllib.parse import urlsplit

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import ChannelError, KombuError, OperationalError
from redis import RedisError

from batch_pipeline.errors import ServiceDownError

#: What dagster-celery calls the queue of all steps.
QUEUE = "dagster"
#: Settings of Celery that runs and workers share.
OPTIONS: dict[str, Any] = {
    "task_track_started": True,  # tells a step that a worker has begun from one that waits
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {"socket_connect_timeout": 5, "socket_keepalive": True},
    # Who waits for the result backend holds up a run, which has better things to do.
    "result_backend_transport_options": {"retry_policy": {"max_retries": 2, "interval_max": 1}},
    "redis_socket_connect_timeout": 5,
    "redis_socket_keepalive": True,
    "result_expires": 24 * 60 * 60,
}
#: What the clients of brokers raise when one does not answer; RuntimeError is the word of Celery's
#: result backend for that.
UNREACHABLE = (OperationalError, KombuError, AMQPError, RedisError, OSError, RuntimeError)
#: Longest wait for a broker that is asked whether it is there (seconds), and for its workers.
_PATIENCE, _WORKERS_PATIENCE = 5.0, 2.0
#: Key, or routing key without a queue, of messages that only show whether the broker takes any.
_PROBE = "batch_pipeline.probe"


def result_backend(broker: str) -> str:
    """Where results go unless a run says otherwise: Redis keeps them, others pass them on."""
    return broker if broker.startswith(("redis", "rediss", "sentinel")) else "rpc://"


def sending_options(broker: str) -> dict[str, Any]:
    """Return the settings of Celery for a run, which sends steps to the broker.

    RabbitMQ confirms each message. One whose disk or memory is full stops reading from whoever has
    sent it one: a send then fails, and is not repeated, as a new connection would deliver one more
    message each time.
    """
    if not _is_amqp(broker):
        return OPTIONS
    line = {"confirm_publish": True, "connect_timeout": 5, "read_timeout": 10, "write_timeout": 10}
    return OPTIONS | {"broker_transport_options": line, "task_publish_retry": False}


def broker_outage(broker: str) -> ServiceDownError | None:
    """Say why no step could be sent now; None if the broker answers and takes messages."""
    options = sending_options(broker)["broker_transport_options"]
    line = Connection(broker, transport_options=options)
    try:
        line.ensure_connection(max_retries=1, timeout=_PATIENCE, reraise_as_library_errors=True)
        _require_room(line)
        line.release()
    except UNREACHABLE as error:
        line.collect(socket_timeout=1)  # a broker that is full does not read that we leave
        return broker_down(broker, error)
    return None


def _is_amqp(broker: str) -> bool:
    return broker.startswith(("amqp", "pyamqp"))


def _require_room(line: Connection) -> None:
    """Send a message that nobody gets, as a broker may answer, and be too full to take one.

    RabbitMQ takes the first message of a connection even then.

    Raises:
        OperationalError: it takes none.
        RedisError: it says why it takes none.
    """
    if line.transport.driver_type == "redis":
        cast("Any", line.default_channel).client.set(_PROBE, "", px=1000)
    elif line.transport.driver_type == "amqp":
        producer = line.Producer()
        try:
            for _ in range(2):
                producer.publish(b"", routing_key=_PROBE, confirm_timeout=_PATIENCE)
        except TimeoutError:
            raise OperationalError("it takes no messages, as its disk or memory is full") from None


def broker_down(broker: str, error: Exception) -> ServiceDownError:
    """Name the broker and what is wrong with it, without its password."""
    url, reason = urlsplit(broker), " ".join(str(error).split())
    where = f"{url.scheme}://{url.hostname}:{url.port}"
    return ServiceDownError("broker_down", f"the Celery broker {where} cannot be used: {reason}")


def messages_wait(app: Celery) -> bool:
    """Tell whether the broker holds messages that no worker has taken yet."""
    with app.connection_for_read() as line:
        try:
            return bool(line.default_channel.queue_declare(QUEUE, passive=True).message_count)
        except ChannelError:
            return False  # Redis knows no empty queues


def listening_workers(broker: str) -> list[str]:
    """Name the workers that answer within two seconds."""
    app = Celery("batch_pipeline", broker=broker, config_source=OPTIONS)
    answers = app.control.ping(timeout=_WORKERS_PATIENCE)
    return sorted(name for answer in answers for name in answer)
