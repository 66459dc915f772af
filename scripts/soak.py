"""Processes 2,000 uploads while other programs interfere and parts of the stack are killed.

    python scripts/soak.py [--uploads 2000] [--seed 1] [--mean-seconds 6]
    python scripts/soak.py --uploads 150 --mean-seconds 3      # about 3 minutes

The processes are real: PostgreSQL, code server, daemon, web server and run workers; only the model
server is scripted. Every few seconds one of them is killed and soon started again, as a supervisor
would do. Each is killed once before any is killed again. Meanwhile:

- An upload API adds files to the same batches, resets and deletes uploads, and locks rows.
- Some files cannot be read. The model service refuses some pictures (403, 400), and calls that come
  too fast (429 with Retry-After).
- A second deployment keeps its files in the same storage. So does another program, whose folders
  look like ours. All these files are old enough to be examined by the tidy.

The soak ends when every part was killed, the API has done each action once, and no work is left.
Then every upload must have ended for the right reason and with one result, the counters must be
correct, and no foreign file may be changed. Otherwise the exit code is 1.
"""

import hashlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from io import BytesIO
from pathlib import Path

import click
from PIL import Image
from sqlalchemy import make_url, text

from batch_pipeline.database.session import connect, create_database_if_missing
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import UploadProcessor
from batch_pipeline.settings import Settings
from batch_pipeline.storage import PARTIAL_SUFFIX
from batch_pipeline.testing.model_server import RateLimit, ReceivedCall, ScriptedModelServer
from batch_pipeline.testing.records import open_all_slices
from batch_pipeline.testing.stack import Part, PostgresProcess, StackProcesses, kill_all
from batch_pipeline.testing.upload_api import UploadApi

UPLOADS_PER_BATCH = 50
LEASE_SECONDS = 5
DOWN_SECONDS = (0.5, 6.0)
VICTIMS = ("run worker", *(part.value for part in Part), "database", "model server")
#: Among this many files there is one of each bad kind.
ONE_BAD_IN = 25
#: Age of the foreign files, more than the grace period of the tidy (seconds).
OLD_SECONDS = 10 * 86_400
FOREIGN_FILES = 12

#: Allowed error kinds of each kind of file, by the first word of its name; None: it must be
#: completed. Kinds of outages are not allowed.
OUTCOMES = {
    "good": None,
    "truncated": ["truncated"],
    "text": ["unsupported_format"],
    "loop": ["source_missing", "source_unreadable", "storage_refused_file"],
    "moderated": ["model_refused_input", "model_refused_call"],
    "unsupported": ["model_refused_input", "model_refused_call"],
}

CHECKS = {
    "uploads that are not terminal": """
        SELECT count(*) FROM uploads WHERE processing_status NOT IN ('completed', 'failed')""",
    "completed uploads without a whole result": """
        SELECT count(*) FROM uploads WHERE processing_status = 'completed' AND (
            description IS NULL OR embedding_local IS NULL OR thumbnail_path IS NULL)""",
    "uploads that a run still owns": """
        SELECT count(*) FROM uploads WHERE owner_run_id IS NOT NULL""",
    "batches that are not completed": """
        SELECT count(*) FROM upload_batches WHERE status <> 'completed'""",
    "batches whose counters are not a recount": """
        SELECT count(*) FROM upload_batches b LEFT JOIN (
            SELECT batch_id, count(*) AS total,
                count(*) FILTER (WHERE processing_status = 'completed') AS good,
                count(*) FILTER (WHERE processing_status = 'failed') AS bad
            FROM uploads GROUP BY batch_id) r ON r.batch_id = b.id
        WHERE (b.total_uploads, b.processed_uploads, b.successful_uploads, b.failed_uploads)
            IS DISTINCT FROM (coalesce(r.total, 0), coalesce(r.good + r.bad, 0),
                coalesce(r.good, 0), coalesce(r.bad, 0))""",
}


def files():
    """Yield names and contents of files without end: mostly good pictures, all different."""
    kinds = [kind for kind in OUTCOMES if kind != "good"]
    for number in itertools.count():
        place = number % ONE_BAD_IN
        kind = kinds[place] if place < len(kinds) else "good"
        # The model server refuses pictures by their shape, which a smaller copy keeps.
        size = {"moderated": (600, 60), "unsupported": (60, 600)}.get(kind, (320, 240))
        colour = (number % 256, number // 256 * 16 % 256, number * 7 % 256)
        data = BytesIO()
        Image.new("RGB", size, colour).save(data, "JPEG")
        content = {"truncated": data.getvalue()[:-200], "text": b"<html>no picture</html>"}
        yield f"{kind}_{number:05}.jpg", content.get(kind, data.getvalue())


def refuse(call: ReceivedCall) -> tuple[int, str] | None:
    """Return status and reason if the model service refuses a call."""
    for image in call.images:
        with Image.open(BytesIO(image)) as picture:
            width, height = picture.size
        if width > 4 * height:
            return 403, "the picture violates the content policy"
        if height > 4 * width:
            return 400, "pictures of this shape are not supported"
    return None


class Soak:
    """The stack, and the code that kills its parts."""

    def __init__(self, home: Path, models: ScriptedModelServer, chance: random.Random) -> None:
        self.models, self.chance = models, chance
        self.postgres = PostgresProcess(home)
        values = {
            "database_url": self.postgres.url,
            "analyzer": "ollama",
            "ollama_host": models.ollama_url,
            "lease_seconds": LEASE_SECONDS,
            "max_files_per_batch": 10_000,
        }
        self.settings = Settings(_env_file=None, home=home, **values)
        self.pipeline = open_pipeline(self.settings)
        variables = {f"BATCH_PIPELINE_{name.upper()}": str(v) for name, v in values.items()}
        self.processes = StackProcesses(home, variables)
        self.storage = home / "uploads"
        self.kills: Counter[str] = Counter()
        self._next_victims: list[str] = []

    def add_batches(self, count: int, files) -> None:
        """Add rows and files for several users, as an API that does not refuse bad files."""
        api = UploadApi(
            self.postgres.url,
            self.storage,
            original=lambda: next(files),
            chance=self.chance,
            mean_seconds=1,
        )
        users = [uuid.UUID(int=number) for number in range(1, 4)]
        with self.pipeline.database.transaction() as connection:
            raw = connection.connection.driver_connection
            for first in range(0, count, UPLOADS_PER_BATCH):
                uploads = min(UPLOADS_PER_BATCH, count - first)
                batch_id = uuid.uuid4()
                connection.execute(
                    text("INSERT INTO upload_batches (id, user_id) VALUES (:id, :user)"),
                    {"id": batch_id, "user": self.chance.choice(users)},
                )
                for _ in range(uploads):
                    api.append(raw)

    def make_unreadable(self) -> None:
        """Replace the originals of the kind ``loop`` by links to themselves."""
        with self.pipeline.database.transaction() as connection:
            loops = text("SELECT file_path FROM uploads WHERE filename LIKE 'loop%'")
            for path in connection.scalars(loops):
                file = self.storage / path
                file.unlink()
                file.symlink_to(file.name)

    def has_seen_everything(self, api: UploadApi, uploads: int) -> bool:
        """Return whether every part was killed, each action of the API done, and half processed."""
        done = self.count("SELECT sum(processed_uploads) FROM upload_batches")
        return (
            len(self.kills) == len(VICTIMS)
            and len(api.done) == len(api.deeds)
            and done >= uploads / 2
        )

    def kill_one(self) -> str:
        """Kill a part, and start it again a moment later; return its name."""
        if not self._next_victims:
            self._next_victims = self.chance.sample(VICTIMS, len(VICTIMS))
        victim = self._next_victims.pop()
        pause = self.chance.uniform(*DOWN_SECONDS)
        if victim == "run worker":
            workers = self.processes.run_workers()
            if not workers:
                self._next_victims.insert(0, victim)
                return ""
            kill_all([self.chance.choice(workers)])
        elif victim == "database":
            self.postgres.kill()
            time.sleep(pause)
            self.postgres.start()
        elif victim == "model server":
            self.models.stop()
            time.sleep(pause)
            self.models.start()
        else:
            self.processes.kill(Part(victim))
            time.sleep(pause)
        self.processes.revive()
        self.kills[victim] += 1
        return victim

    def count(self, statement: str, **values) -> int:
        """Read one number from the database."""
        with self.pipeline.database.transaction() as connection:
            return int(connection.execute(text(statement), values).scalar_one() or 0)

    def problems(self) -> dict[str, int]:
        """Count what is wrong at the end, by description."""
        wrong = "SELECT count(*) FROM uploads WHERE filename LIKE :of || '\\_%' AND NOT "
        ends = {
            f"uploads of kind {kind} that did not end for their reason": (
                self.count(wrong + "(processing_status = 'completed')", of=kind)
                if reasons is None
                else self.count(
                    wrong + "(processing_status = 'failed' AND error_kind = ANY(:reasons)"
                    " AND error_message <> '')",
                    of=kind,
                    reasons=reasons,
                )
            )
            for kind, reasons in OUTCOMES.items()
        }
        return ends | {what: self.count(statement) for what, statement in CHECKS.items()}

    def kinds(self) -> dict[str, int]:
        """Count the uploads of each kind of file."""
        of_kind = "SELECT count(*) FROM uploads WHERE filename LIKE :of || '\\_%'"
        return {kind: self.count(of_kind, of=kind) for kind in OUTCOMES}

    def close(self) -> None:
        """Close the pipeline, and stop the database."""
        self.pipeline.close()
        self.postgres.close()

    def tidy(self) -> None:
        """Run the sweep with its hourly part."""
        command = [sys.executable, "-m", "dagster", "job", "execute"]
        command += ["-m", "batch_pipeline.definitions", "-j", "sweep_backlog"]
        environment = self.processes.environment
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)


class Neighbours:
    """A second deployment on the same storage, and a program whose folders look like ours."""

    def __init__(self, soak: Soak) -> None:
        server = make_url(soak.postgres.url)
        create_database_if_missing(server, "second")
        url = server.set(database="second").render_as_string(hide_password=False)
        self.settings = Settings(
            _env_file=None,
            home=soak.settings.home / "second",
            database_url=url,
            storage_url=str(soak.storage),
        )
        self.pipeline = open_pipeline(self.settings)
        self._storage = soak.storage
        self.batch_id: uuid.UUID | None = None
        self._sums: dict[Path, str] = {}

    def store_files(self, folder: Path) -> None:
        """Store files, and remember their checksums."""
        before = set(self._storage.rglob("*"))
        pictures = [folder / f"{number}.jpg" for number in range(6)]
        for number, path in enumerate(pictures):
            Image.new("RGB", (64, 48), (40 * number, 200 - 30 * number, 90)).save(path)
        self.batch_id = submit(
            pictures,
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.settings,
        ).batch_id
        for number in range(FOREIGN_FILES):
            names = ("avatar.png", "original.jpg", f"original.jpg{PARTIAL_SUFFIX}")
            folder = self._storage / str(uuid.uuid4()) / str(uuid.uuid4())
            folder.mkdir(parents=True)
            (folder / names[number % len(names)]).write_bytes(os.urandom(100))
        for path in set(self._storage.rglob("*")) - before:
            long_ago = time.time() - OLD_SECONDS
            os.utime(path, (long_ago, long_ago))
            if path.is_file():
                self._sums[path] = _digest(path)

    def touched(self) -> list[Path]:
        """List the files that are gone or changed."""
        return [path for path, was in self._sums.items() if _digest(path) != was]

    def unprocessed(self) -> int:
        """Let the second deployment process its batch; return how many are not completed."""
        slices = open_all_slices(self.pipeline.database, 250)
        with ClaimKeeper(self.pipeline.states, "second", lease_seconds=120) as keeper:
            processor = UploadProcessor(self.pipeline, keeper)
            for slice_ in slices:
                loaded = self.pipeline.states.load_batch(
                    slice_.batch_id, "second", slice_number=slice_.number, limit=250
                )
                for upload in loaded.reserved if loaded else ():
                    processor.process(upload.id, "second", retries_left=0)
        with self.pipeline.database.transaction() as connection:
            left = "SELECT count(*) FROM uploads WHERE processing_status <> 'completed'"
            return int(connection.execute(text(left)).scalar_one())


def open_pipeline(settings: Settings) -> Pipeline:
    """Create the tables, and open the pipeline."""
    database = connect(settings)
    database.upgrade()
    database.close()
    return Pipeline(settings)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone"


@click.command()
@click.option("--uploads", default=2000, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Of the choice of victims and moments.")
@click.option("--mean-seconds", default=6.0, show_default=True, help="Between two kills.")
@click.option("--latency", default=0.1, show_default=True, help="Seconds per model call.")
@click.option("--patience", default=3600.0, show_default=True, help="Longest run (seconds).")
def main(uploads: int, seed: int, mean_seconds: float, latency: float, patience: float) -> None:
    """Run the soak and judge its end."""
    chance = random.Random(seed)
    begin = time.monotonic()

    def elapsed() -> float:
        return time.monotonic() - begin

    with (
        tempfile.TemporaryDirectory() as folder,
        ScriptedModelServer(
            latency_seconds=latency,
            refuse=refuse,
            # Fewer calls than the stack makes, so that the limit is reached.
            rate_limit=RateLimit(calls=max(10, uploads // 50), seconds=5),
        ) as models,
    ):
        soak = Soak(Path(folder) / "home", models, chance)
        originals = files()
        soak.add_batches(uploads, originals)
        soak.make_unreadable()
        neighbours = Neighbours(soak)
        neighbours.store_files(Path(folder))
        api = UploadApi(
            soak.postgres.url,
            soak.storage,
            # Files of the kind ``loop`` could be read before they are replaced by a link.
            original=lambda: next(file for file in originals if not file[0].startswith("loop")),
            chance=random.Random(seed + 1),
            mean_seconds=mean_seconds / 4,
        )
        with soak.processes:
            with api:
                while not soak.has_seen_everything(api, uploads) and elapsed() < patience:
                    time.sleep(chance.expovariate(1 / mean_seconds))
                    victim = soak.kill_one()
                    done = soak.count("SELECT sum(processed_uploads) FROM upload_batches")
                    click.echo(f"{elapsed():6.0f} s  {done:5} done  killed: {victim}")
            click.echo(f"{elapsed():6.0f} s  nothing is killed any more, and the API is quiet")
            while any(soak.problems().values()) and elapsed() < patience:
                time.sleep(2)
            soak.tidy()
        problems = soak.problems() | {
            "parts that were never killed": len(VICTIMS) - len(soak.kills),
            "rate limit that was never reached": int(not models.full_windows),
            "things that the API never did": len(api.deeds) - len(api.done),
            "uploads that the second deployment cannot process": neighbours.unprocessed(),
            "foreign files that are gone or changed": len(neighbours.touched()),
        }
        click.echo(f"{elapsed():6.0f} s  done; killed: {_said(soak.kills)}")
        click.echo(f"the API did: {_said(api.done)}; interrupted: {_said(api.interrupted)}")
        click.echo(f"uploads in the end: {_said(soak.kinds())}")
        click.echo(
            f"descriptions asked for: {len(models.calls_of('vision'))}; "
            f"rate limit used up in {models.full_windows} windows of 5 s, "
            f"calls turned away: {models.turned_away}"
        )
        soak.close()
        neighbours.pipeline.close()
    for what, number in problems.items():
        click.echo(f"{'BAD ' if number else 'ok  '}{what}: {number}")
    sys.exit(any(problems.values()))


def _said(counts) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
