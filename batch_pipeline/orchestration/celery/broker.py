"""The broker between runs and Celery workers: how both use it, and whether it answers.

A worker acknowledges a message when it begins to process it. So a message that has killed a worker
is never delivered again; our leases recover an upload that is lost this way. With Redis, a worker
takes a message only if it can begin at once, so no message is lost before that. With RabbitMQ, a
worker fetches one message ahead, which goes to another worker if this one dies.
"""

from typing import Any, cast
from urllib.parse import urlsplit

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import ChannelError, KombuError, OperationalError
from redis import RedisError

from batch_pipeline.errors import ServiceDownError

#: The name that dagster-celery gives to the queue of all steps.
QUEUE = "dagster"
#: Settings of Celery that runs and workers share.
OPTIONS: dict[str, Any] = {
    "task_track_started": True,  # distinguishes a step that a worker has begun from a waiting one
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    "broker_connection_retry_on_startup": True,
    # With one priority, all steps are in one list of Redis, whose name is that of the queue.
    "broker_transport_options": {
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "priority_steps": [0],
    },
    # Waiting for the result backend would hold up the run.
    "result_backend_transport_options": {"retry_policy": {"max_retries": 2, "interval_max": 1}},
    "redis_socket_connect_timeout": 5,
    "redis_socket_keepalive": True,
    "result_expires": 24 * 60 * 60,
}
#: Errors that the clients of brokers raise when a broker does not answer. Celery's result backend
#: raises RuntimeError.
UNREACHABLE = (OperationalError, KombuError, AMQPError, RedisError, OSError, RuntimeError)
#: Longest wait in a check for the broker, and for its workers (seconds).
_PATIENCE, _WORKERS_PATIENCE = 5.0, 2.0
#: Key (Redis) or routing key without a queue (RabbitMQ) of messages that only test whether the
#: broker accepts messages.
_PROBE = "batch_pipeline.probe"


def result_backend(broker: str) -> str:
    """Return the default result backend: Redis keeps results, other brokers pass them on."""
    return broker if broker.startswith(("redis", "rediss", "sentinel")) else "rpc://"


def sending_options(broker: str) -> dict[str, Any]:
    """Return the settings of Celery for a run, which sends steps to the broker.

    RabbitMQ confirms each message. If its disk or memory is full, it stops reading from a client
    that has sent it a message, and the next send fails. A failed send is not repeated: each new
    connection would deliver one more message.
    """
    if not _is_amqp(broker):
        return OPTIONS
    line = {"confirm_publish": True, "connect_timeout": 5, "read_timeout": 10, "write_timeout": 10}
    return OPTIONS | {"broker_transport_options": line, "task_publish_retry": False}


def broker_outage(broker: str) -> ServiceDownError | None:
    """Return why no step can be sent now; None if the broker answers and accepts messages."""
    options = sending_options(broker)["broker_transport_options"]
    line = Connection(broker, transport_options=options)
    try:
        line.ensure_connection(max_retries=1, timeout=_PATIENCE, reraise_as_library_errors=True)
        _require_room(line)
        line.release()
    except UNREACHABLE as error:
        line.collect(socket_timeout=1)  # a full broker does not read that we close the connection
        return broker_down(broker, error)
    return None


def _is_amqp(broker: str) -> bool:
    return broker.startswith(("amqp", "pyamqp"))


def _require_room(line: Connection) -> None:
    """Send a message that is never delivered: a broker that answers may be too full for one.

    This sends two messages to RabbitMQ, because it accepts the first message of a connection even
    when it is full.

    Raises:
        OperationalError: RabbitMQ accepts no messages.
        RedisError: Redis accepts no messages; the error has the reason.
    """
    if line.transport.driver_type == "redis":
        cast("Any", line.default_channel).client.set(_PROBE, "", px=1000)
    elif line.transport.driver_type == "amqp":
        producer = line.Producer()
        try:
            for _ in range(2):
                producer.publish(b"", routing_key=_PROBE, confirm_timeout=_PATIENCE)
        except TimeoutError:
            raise OperationalError("it accepts no messages: its disk or memory is full") from None


def broker_down(broker: str, error: Exception) -> ServiceDownError:
    """Make an error that names the broker, without its password, and what is wrong with it."""
    url, reason = urlsplit(broker), " ".join(str(error).split())
    # The first of several brokers, whose URLs are separated by semicolons.
    where = f"{url.scheme}://{url.netloc.rpartition('@')[2].partition(';')[0]}"
    return ServiceDownError("broker_down", f"the Celery broker {where} cannot be used: {reason}")


def messages_wait(app: Celery) -> bool:
    """Return whether the broker holds messages that no worker has taken yet."""
    with app.connection_for_read() as line:
        try:
            return bool(line.default_channel.queue_declare(QUEUE, passive=True).message_count)
        except ChannelError:
            return False  # in Redis an empty queue does not exist


def listening_workers(broker: str) -> list[str]:
    """Return the names of the workers that answer within two seconds."""
    app = Celery("batch_pipeline", broker=broker, config_source=OPTIONS)
    answers = app.control.ping(timeout=_WORKERS_PATIENCE)
    return sorted(name for answer in answers for name in answer)
