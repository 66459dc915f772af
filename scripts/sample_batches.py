"""Fifty batches of several people for the screenshots, in all states that a batch can have."""

import time
import uuid
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from batch_pipeline.database.models import PauseScope
from batch_pipeline.demo import sample_media
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pauses import pause, resume
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_status import newest_batches

_USERS = [
    uuid.UUID(int=number << 96) for number in (0x5A0F3C7E, 0x7B21D904, 0x9C4EE6B1, 0xD8052F3A)
]
_OCCASIONS = ["Holiday", "Wedding", "Inspection", "Concert", "Hike"]
_PLACES = ["Rome", "Oslo", "Lisbon", "Kyoto", "Riga", "Cork", "Graz", "Turin", "Porto", "Bergen"]
_NAMES = [f"{occasion} {place}" for place in _PLACES for occasion in _OCCASIONS]
#: How many of the fifty batches end, are cancelled, are paused, and are submitted last. The batch
#: of the demo's files is the fiftieth.
_ENDED, _CANCELLED, _PAUSED, _BUSY = 38, 3, 2, 6
#: Number of pictures in a batch that is still processed when the screenshot is taken.
_MANY = 40
#: The batch of the demo's files.
SAMPLE = "Sample pictures"


class SampleBatches:
    """Submits the batches; screenshots are taken between the steps."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self._pipeline, self._folder = pipeline, folder
        self._names, self._users = iter(_NAMES), cycle(_USERS)
        media = sample_media()
        self._good = [path for path in media if path.name != "truncated.jpg"]
        [self._bad] = set(media) - set(self._good)

    def submit_those_that_end(self) -> None:
        """Submit most batches, some with a bad file; cancel or pause a few; wait for the others."""
        database, settings = self._pipeline.database, self._pipeline.settings
        pause(database, settings, PauseScope.EVERYTHING)
        pictures = cycle(self._good)
        for number in range(_ENDED):
            files = [*islice(pictures, 1 + number % 4), *([self._bad] if number % 8 == 5 else [])]
            self._submit(files)
        for _ in range(_CANCELLED):
            self._pipeline.batches.cancel_batch(self._submit(self._good))
        for _ in range(_PAUSED):
            batch_id = self._submit(self._good[:6])
            pause(database, settings, PauseScope.BATCH, str(batch_id), "asked by the customer")
        resume(database, PauseScope.EVERYTHING)
        while self._open() > _PAUSED:
            time.sleep(1)

    def submit_the_sample(self) -> uuid.UUID:
        """Submit the demo's files, and wait until they are processed."""
        batch_id = self._submit(sample_media(), SAMPLE)
        while self._open() > _PAUSED:
            time.sleep(1)
        return batch_id

    def submit_those_in_progress(self) -> None:
        """Submit the last batches, which take a while; some of them wait for the others."""
        drawn = [_noise(self._folder / str(number), _MANY, number) for number in range(_BUSY)]
        for number in range(_BUSY):
            self._submit(drawn[number])

    def _submit(self, files: Sequence[Path], name: str | None = None) -> uuid.UUID:
        submission = submit(
            files,
            user_id=next(self._users),
            publisher=self._pipeline.publisher,
            storage=self._pipeline.storage,
            settings=self._pipeline.settings,
            name=name or next(self._names),
        )
        assert submission.batch_id, submission.refused
        return submission.batch_id

    def _open(self) -> int:
        newest = newest_batches(self._pipeline.database, limit=len(_NAMES) + 1)
        return sum(batch["status"] in {"pending", "processing"} for batch in newest)


def _noise(folder: Path, count: int, seed: int) -> list[Path]:
    """Draw different pictures, each large enough that processing takes a moment."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    paths = [folder / f"{folder.name}_{number:03}.jpg" for number in range(count)]
    for path in paths:
        coarse = random.integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((4000, 3000), Image.Resampling.BICUBIC).save(path)
    return paths
