"""Processes a batch with capped memory and file descriptors, four uploads at a time.

Run it as a module with the batch's id; settings come from the environment. It prints its usage.
"""

import io
import json
import os
import resource
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import UploadProcessor
from batch_pipeline.settings import load_settings
from batch_pipeline.testing.media import make_image, make_video

THREADS = 4
RUN = "capped"
MEMORY_BYTES = 512 * 1024**2
FILE_DESCRIPTORS = 32


def _peak_kilobytes(*, reset: bool = False) -> int:
    """Return the peak of resident memory; if `reset`, start a new measurement.

    ``ru_maxrss`` is not used: it begins at the peak of the parent process.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1])


def main() -> None:
    pipeline = Pipeline(load_settings())
    for ordinary in (make_image(), make_video()):  # load everything that is loaded only once
        content = decode(io.BytesIO(ordinary), sniff(ordinary))
        described = pipeline.analyzer.vision.describe(content.facts, content.frames).text
        pipeline.analyzer.embedding.embed([described])
    loaded = pipeline.states.load_batch(uuid.UUID(sys.argv[1]), RUN, limit=1000)
    assert loaded
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES,) * 2)
    open_files = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + FILE_DESCRIPTORS,) * 2)
    before = _peak_kilobytes(reset=True)
    with ClaimKeeper(pipeline.states, RUN, lease_seconds=120) as keeper:
        processor = UploadProcessor(pipeline, keeper)
        with ThreadPoolExecutor(THREADS) as pool:
            list(
                pool.map(
                    lambda upload: processor.process(upload.id, RUN, retries_left=0),
                    loaded.reserved,
                )
            )
    pipeline.close()
    growth = (_peak_kilobytes() - before) / 1024
    left_open = len(os.listdir("/proc/self/fd")) - open_files
    print(json.dumps({"megabytes": round(growth), "files_left_open": left_open}))


if __name__ == "__main__":
    main()
