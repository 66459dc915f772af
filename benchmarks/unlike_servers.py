"""How calls are divided between a fast and a slow model server, as a ratio.

    python benchmarks/unlike_servers.py
    python benchmarks/unlike_servers.py --fast 0.2 --slow 1.6 --threads 4 --slots 4

Threads of one worker call the vision model in a loop, through the analyzer of a run worker. The
servers are scripted and answer each call after their latency. The script compares three ways to
choose a server: the one with the fewest seconds of work (ours), the same with a separate limit for
a server (`#`), and each server in turn, like a load balancer that knows nothing about the servers.
`of the best` is the throughput as a share of what the same threads could reach with perfect
knowledge of both servers.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers.base import VisionModel
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.model_servers.remote import red_square
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import ScriptedModelServer

_PICTURE = MediaFacts("image", "jpeg", 64, 64)


def vision_of(addresses: Sequence[str], slots: int) -> VisionModel:
    settings = Settings(
        _env_file=None,
        analyzer="ollama",
        embedder="embedded",
        ollama_host=",".join(addresses),
        max_vision_calls=slots,
    )
    return build_analyzer(settings).vision


def best_rate(fast: float, slow: float, threads: int, slots: int) -> float:
    """Return the calls per second if the slow server gets calls only while the fast one is full."""
    on_fast = min(threads, slots)
    return on_fast / fast + min(threads - on_fast, slots) / slow


def measure(name: str, visions: Sequence[VisionModel], arguments: argparse.Namespace) -> None:
    servers = arguments.servers
    before = [len(server.calls) for server in servers]
    frame, turns = Frame(red_square()), itertools.cycle(visions)
    # As many as both servers together can answer in the requested time.
    rate = best_rate(arguments.fast, arguments.slow, arguments.threads, arguments.slots)
    calls, begun = round(rate * arguments.seconds), time.perf_counter()
    with ThreadPoolExecutor(arguments.threads) as pool:
        for _ in pool.map(lambda _: next(turns).describe(_PICTURE, [frame]), range(calls)):
            pass
    seconds = time.perf_counter() - begun
    fast, slow = (len(s.calls) - n for s, n in zip(servers, before, strict=True))
    ratio = f"{fast / slow:.1f} : 1" if slow else "all to the fast one"
    share = calls / seconds / rate
    print(f"{name:<22}{fast:>6}{slow:>6}  {ratio:<20}{calls / seconds:>8.1f}/s{share:>8.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", type=float, default=0.1, help="seconds per call")
    parser.add_argument("--slow", type=float, default=0.8, help="seconds per call")
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--slots", type=int, default=4, help="of each server")
    parser.add_argument("--seconds", type=float, default=10, help="of each run, at best")
    arguments = parser.parse_args()
    fast = ScriptedModelServer(latency_seconds=arguments.fast)
    slow = ScriptedModelServer(latency_seconds=arguments.slow)
    with fast, slow:
        arguments.servers = (fast, slow)
        both = [fast.ollama_url, slow.ollama_url]
        own = [f"{both[0]}#{arguments.slots}", f"{both[1]}#1"]
        print(
            f"{arguments.threads} threads, {arguments.slots} slots each, {arguments.fast:g} and "
            f"{arguments.slow:g} s per call"
        )
        print(f"{'':<22}{'fast':>6}{'slow':>6}  {'ratio':<20}{'calls':>10}{'of the best':>12}")
        measure("least seconds of work", [vision_of(both, arguments.slots)], arguments)
        measure("with #1 for the slow", [vision_of(own, arguments.slots)], arguments)
        in_turn = [vision_of([address], arguments.slots) for address in both]
        measure("in turn", in_turn, arguments)
        close_analyzers()


if __name__ == "__main__":
    main()
