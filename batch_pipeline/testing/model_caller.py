"""A process that only calls the vision model, for tests and benchmarks of its slots.

``python -m batch_pipeline.testing.model_caller --threads 8 --calls 100`` with the settings in the
environment. It prints ``ready``, waits for a line, makes the calls, and prints as JSON how many
succeeded and how the others ended.
"""

import io
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import click
from PIL import Image

from batch_pipeline.errors import KindedError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import load_settings

_PICTURE = MediaFacts("image", "jpeg", 64, 48)


@click.command()
@click.option("--threads", default=4, show_default=True)
@click.option("--calls", default=1, show_default=True, help="In all; 0: until it is stopped.")
def main(threads: int, calls: int) -> None:
    """Ask the vision model about one picture, again and again."""
    written = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(written, "JPEG")
    frame = Frame(written.getvalue(), 0.0)
    pipeline = Pipeline(load_settings())
    vision = pipeline.analyzer.vision
    left = iter(range(calls)) if calls else itertools.count()

    def work() -> Iterator[str]:
        # Taking the next number of a shared iterator is atomic under the interpreter lock.
        for _ in left:
            try:
                vision.describe(_PICTURE, [frame])
                yield "described"
            except KindedError as error:
                yield error.kind

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as pool:
        outcomes = pool.map(lambda _: Counter(work()), range(threads))
        print(json.dumps(sum(outcomes, Counter[str]())), flush=True)
    pipeline.close()


if __name__ == "__main__":
    main()
