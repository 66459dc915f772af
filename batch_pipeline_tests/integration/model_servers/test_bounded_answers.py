"""If a server sends too much, only a part is read, and the error says so."""

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from batch_pipeline.errors import KindedError, TransientError
from batch_pipeline.model_servers.answers import LONGEST_ANSWER, usable_text
from batch_pipeline.testing.model_server import Fault
from batch_pipeline_tests.integration.model_servers.conftest import IMAGE, BuildAnalyzer, picture

#: Memory that a call may use besides the 8 MB that are read (bytes).
MEMORY = 30 * 1024**2


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Fault], str]]:
    """Starts a server in another process, whose memory is not counted; returns its address."""
    started: list[subprocess.Popen[str]] = []

    def start(fault: Fault) -> str:
        module = "batch_pipeline.testing.model_server"
        started.append(
            subprocess.Popen(
                [sys.executable, "-u", "-m", module, "--port", "0", "--fault", fault],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert started[-1].stdout
        return started[-1].stdout.readline().split()[1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (Fault.HUGE, "model_output_invalid", "more than 8 MB"),
        (Fault.BOMB, "model_output_invalid", "more than 8 MB"),
        (Fault.HUGE_ERROR, "model_fails_all", "answered 500: the runner says: xxx"),
    ],
)
def test_50_mb_end_the_call_early_with_a_reason_and_bounded_memory(
    build: BuildAnalyzer,
    elsewhere: Callable[[Fault], str],
    fault: Fault,
    kind: str,
    reason: str,
) -> None:
    address = elsewhere(fault)
    vision = build(ollama_host=address, openai_base_url=f"{address}/v1").vision
    tracemalloc.start()
    try:
        with pytest.raises(KindedError, match=reason) as raised:
            vision.describe(IMAGE, [picture()])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert raised.value.kind == kind
    assert len(str(raised.value)) < 2500
    assert peak < MEMORY


def test_an_answer_longer_than_any_description_is_refused() -> None:
    with pytest.raises(TransientError, match=r"expected at most 50,000"):
        usable_text("word " * LONGEST_ANSWER, cut_by_length=False)
