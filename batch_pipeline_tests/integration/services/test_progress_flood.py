"""The number of progress messages of a large batch, and its last message."""

import json
import multiprocessing
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import redis
from sqlalchemy import text

from batch_pipeline.media.sniffing import JPEG
from batch_pipeline.model_servers.base import Description
from batch_pipeline.services.descriptions.known_results import Described
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.publishing import BURST, CHANNEL, PER_SECOND
from batch_pipeline.services.states.claim_keeper import CHECK_SECONDS, ClaimKeeper
from batch_pipeline.services.states.upload_states import UploadStates
from batch_pipeline.settings import Settings
from batch_pipeline.testing.listening import messages_until_now
from batch_pipeline.testing.records import USER, add_batch, batch_row, upload_rows
from batch_pipeline.testing.tcp_proxy import TcpProxy
from batch_pipeline_tests.patience import DEADLINE

WORKERS, THREADS = 2, 4


def add_large_batch(database, uploads):
    batch_id = add_batch(database, total_uploads=uploads)
    with database.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size)"
                " SELECT :user, :batch, n || '.jpg', n || '/original.jpg', 'image', 1000"
                " FROM generate_series(1, :uploads) AS n"
            ),
            {"user": USER, "batch": batch_id, "uploads": uploads},
        )
    return batch_id


def work(settings: Settings, batch_id: uuid.UUID, share: int, name: str) -> None:
    """One run: all its transitions, without pauses between them."""
    pipeline = Pipeline(settings)
    with ClaimKeeper(pipeline.states, name, lease_seconds=120):
        process_share(pipeline.states, batch_id, share, name, threads=THREADS)
    pipeline.close()


def process_share(
    states: UploadStates, batch_id: uuid.UUID, share: int, name: str, *, threads: int
) -> None:
    loaded = states.load_batch(batch_id, name, limit=share)

    def process(upload_id: uuid.UUID) -> None:
        claim = states.start(upload_id, name).claim
        states.store_thumbnail(claim, "thumb_256.jpg", {})
        states.store_description(
            claim,
            described=Described(Description("words"), 90, "m", "m"),
            facts={},
            checksum=None,
            media_type=JPEG,
            video_codec=None,
            regenerated=False,
            seconds={},
        )
        states.complete(claim, seconds={})

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(process, [upload.id for upload in loaded.reserved]))


class Listener:
    """All messages about a batch, on PostgreSQL and on Redis."""

    def __init__(self, database_url, redis_url, batch_id):
        self._postgres = psycopg.connect(database_url, autocommit=True)
        self._postgres.execute(f"LISTEN {CHANNEL}")
        self._redis = redis.Redis.from_url(redis_url)
        self._subscription = self._redis.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(f"batch_progress:{batch_id}")
        self._subscription.get_message(timeout=DEADLINE)
        self._workers_ended = threading.Event()
        self.messages = {"postgres": [], "redis": []}
        self._threads = [
            threading.Thread(target=self._collect, args=("postgres", self._next_of_postgres)),
            threading.Thread(target=self._collect, args=("redis", self._next_of_redis)),
        ]

    def _next_of_postgres(self):
        return [message.payload for message in self._postgres.notifies(timeout=0.5)]

    def _next_of_redis(self):
        message = self._subscription.get_message(timeout=0.5)
        return [message["data"]] if message else []

    def _collect(self, channel, next_messages):
        """Ended threads have sent all their messages: after a quiet moment no more will come."""
        while (got := next_messages()) or not self._workers_ended.is_set():
            self.messages[channel] += map(json.loads, got)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._workers_ended.set()
        for thread in self._threads:
            thread.join()
        self._subscription.close()
        self._redis.close()
        self._postgres.close()


@pytest.mark.parametrize(
    "uploads",
    [
        300,
        pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.proof, pytest.mark.timeout(400)]),
    ],
)
def test_a_flood_is_thinned_out_and_the_last_message_says_completed(
    change, open_pipeline, database_url, redis_url, uploads
):
    settings = change(redis_url=redis_url)
    pipeline = open_pipeline(settings)
    batch_id = add_large_batch(pipeline.database, uploads)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=work, args=(settings, batch_id, uploads // WORKERS + 1, f"run {n}"))
        for n in range(WORKERS)
    ]
    with Listener(database_url, redis_url, batch_id) as listener:
        begin = time.monotonic()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(380)
        seconds = time.monotonic() - begin
    assert [worker.exitcode for worker in workers] == [0] * WORKERS
    assert batch_row(pipeline.database, batch_id).successful_uploads == uploads

    bound = WORKERS * (BURST + PER_SECOND * seconds)
    for channel, messages in listener.messages.items():
        kinds = Counter(kind_of(message) for message in messages)
        print(f"{channel}: {uploads} uploads, {seconds:.1f} s, {dict(kinds)}")
        assert kinds["begin"] == kinds["end"] == uploads
        assert 0 < kinds["stage"] <= bound
        # A thread that is late on Redis repeats the end: at most once per thread.
        assert kinds["batch"] <= bound + WORKERS * seconds / CHECK_SECONDS + WORKERS * THREADS + 1
        last = messages[-1]
        assert (last["action"], last["payload"]["status"]) == ("batch_progress", "completed")
        assert last["payload"]["progress_percentage"] == 100
    counters = [
        message["payload"]["processed"]
        for message in listener.messages["postgres"]
        if message["action"] == "batch_progress"
    ]
    assert counters == sorted(counters), "counters went back: messages overtook each other"


def test_one_run_sends_no_more_than_its_burst_while_the_clock_stands_still(
    pipeline, database_url, monkeypatch
):
    monkeypatch.setattr(pipeline.publisher._filter._pace, "_clock", lambda: 0.0)
    uploads = BURST + 5
    batch_id = add_large_batch(pipeline.database, uploads)
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        process_share(pipeline.states, batch_id, uploads, "run", threads=1)
        kinds = Counter(kind_of(json.loads(said)) for said in messages_until_now(listener))
    # In addition to the burst of each kind: the batch has begun, and it has ended.
    assert kinds == {"begin": uploads, "end": uploads, "stage": BURST, "batch": 1 + BURST + 1}


def kind_of(message):
    if message["action"] == "batch_progress":
        return "batch"
    if message["payload"]["status"] != "processing":
        return "end"
    return "stage" if message["payload"]["progress_percentage"] else "begin"


def processed_of(messages):
    found = map(json.loads, messages)
    return [m["payload"]["processed"] for m in found if m["action"] == "batch_progress"]


def test_counters_that_were_left_out_are_caught_up_and_nobody_waits_for_a_locked_batch(
    pipeline, database_url, monkeypatch
):
    # The clock stands still, so the burst is used up even on a slow machine.
    monkeypatch.setattr(pipeline.publisher._filter._pace, "_clock", lambda: 0.0)
    batch_id = add_large_batch(pipeline.database, 2 * BURST + 20)
    states = pipeline.states
    reserved = states.load_batch(batch_id, "run", limit=1000).reserved
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        # The last one is left out, because together they exceed the burst.
        ended = 0
        while not pipeline.publisher._filter._behind:
            states.complete(states.start(reserved[ended].id, "run").claim, seconds={})
            ended += 1
        messages_until_now(listener)
        with psycopg.connect(database_url) as other:
            other.execute("SELECT 1 FROM upload_batches WHERE id = %s FOR UPDATE", [batch_id])
            pipeline.publisher.catch_up()
            assert processed_of(messages_until_now(listener)) == []
        with ClaimKeeper(states, "run", lease_seconds=120):
            first = listener.notifies(timeout=DEADLINE, stop_after=1)
            assert processed_of(message.payload for message in first) == [ended]
        assert messages_until_now(listener) == []


def test_a_late_thread_repeats_the_end_on_redis(change, open_pipeline, redis_url):
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with TcpProxy(address=("127.0.0.1", port)) as proxy:
        patient = f"redis://127.0.0.1:{proxy.port}/0?socket_timeout={DEADLINE:g}"
        slow = open_pipeline(change(redis_url=patient))
        fast = open_pipeline(change(redis_url=redis_url))
        batch_id = add_batch(fast.database, 2)
        first, second = upload_rows(fast.database, batch_id)
        slow.states.load_batch(batch_id, "run", limit=2)
        slow_claim = slow.states.start(first.id, "run").claim
        fast_claim = fast.states.start(second.id, "run").claim
        with redis.Redis.from_url(redis_url) as client, client.pubsub() as subscription:
            subscription.subscribe(f"batch_progress:{batch_id}")
            subscription.get_message(timeout=DEADLINE)
            with proxy.holding():
                late = threading.Thread(
                    target=slow.states.complete, args=(slow_claim,), kwargs={"seconds": {}}
                )
                late.start()
                assert proxy.held.wait(DEADLINE)
                fast.states.complete(fast_claim, seconds={})
            late.join(DEADLINE)
            said = []
            while message := subscription.get_message(timeout=0.5):
                said.append(json.loads(message["data"])["payload"])
    assert said[1]["status"] == "completed"  # the file of `fast`, then the end
    assert [p["status"] for p in said[-3:]] == ["completed", "processing", "completed"]
    assert (said[-1]["processed"], said[-1]["progress_percentage"]) == (2, 100)
