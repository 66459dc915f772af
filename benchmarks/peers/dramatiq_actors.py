"""Dramatiq: a message for each upload, processes with threads; Redis also keeps the results."""

from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from redis import Redis
from redis_broker import SOCKET, redis_server
from work import assignment, host, process, workers

URL = f"unix://{SOCKET}"
broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=f"{URL}?db=1"), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def upload(upload_id: str) -> bool:
    process(upload_id)
    return True


def send(upload_ids: Sequence[str]) -> None:
    for upload_id in upload_ids:
        upload.send(upload_id)


def recorded() -> int:
    return int(Redis(unix_socket_path=str(SOCKET), db=1).dbsize())


if __name__ == "__main__":
    command = ["-m", "dramatiq", "dramatiq_actors", "-p", str(assignment().processes)]
    command += ["-t", str(assignment().threads)]
    with redis_server(), workers(command):
        host(send, recorded)
