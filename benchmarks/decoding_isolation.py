"""Compares decoding in the run worker, in a child process per file, and in reused children.

    python benchmarks/decoding_isolation.py --files 40

Prints milliseconds per file, and the ratio to decoding in the same process, for photos of 12
megapixels. A child returns the pictures that an upload needs: preview and vision input.
"""

import argparse
import io
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import HEAD_BYTES, sniff
from batch_pipeline.testing.media import make_photo


def pictures_of(data: bytes) -> tuple[bytes, list[bytes]]:
    media_type = sniff(data[:HEAD_BYTES])
    assert media_type
    content = decode(io.BytesIO(data), media_type)
    return content.make_thumbnail(), list(content.frames)


def milliseconds(work: Callable[[], object], files: int) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000 / files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=40, help="photos of 12 megapixels")
    files = parser.parse_args().files
    photos = [make_photo(12, seed=seed) for seed in range(4)] * (files // 4)
    figures = {"in process": milliseconds(lambda: list(map(pictures_of, photos)), len(photos))}
    context = multiprocessing.get_context("spawn")

    def in_children(per_child: int | None) -> None:
        with ProcessPoolExecutor(1, context, max_tasks_per_child=per_child) as pool:
            list(pool.map(pictures_of, photos))

    figures["one kept child"] = milliseconds(lambda: in_children(None), len(photos))
    figures["a child per file"] = milliseconds(lambda: in_children(1), len(photos))
    print("| | ms per photo | ratio |\n|---|---|---|")
    for name, figure in figures.items():
        print(f"| {name} | {figure:.0f} | {figure / figures['in process']:.1f} |")


if __name__ == "__main__":
    main()
