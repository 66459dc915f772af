"""Work 2,000 uploads while parts of the stack are killed at random; nothing may be lost or doubled.

    python scripts/soak.py [--uploads 2000] [--seed 1] [--mean-seconds 6]

Real processes: PostgreSQL, code server, daemon, web server, run workers, and a scripted model
server. Every few seconds one of them is killed and, a moment later, started again as a supervisor
would; each is killed once before any is killed again. At the end every upload must be terminal with
one result and the counters must be a recount. Exit code 1 if not, or if a part was never killed.
"""

import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import click
from PIL import Image
from sqlalchemy import text

from batch_pipeline.database.session import connect
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings
from batch_pipeline.storage import PARTIAL_SUFFIX
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.stack import Part, PostgresProcess, StackProcesses, kill_all

UPLOADS_PER_BATCH = 250
LEASE_SECONDS = 5
DOWN_SECONDS = (0.5, 6.0)
VICTIMS = ("run worker", *(part.value for part in Part), "database", "model server")

CHECKS = {
    "uploads that are not terminal": """
        SELECT count(*) FROM uploads WHERE processing_status NOT IN ('completed', 'failed')""",
    "failed uploads (every picture is good)": """
        SELECT count(*) FROM uploads WHERE processing_status = 'failed'""",
    "completed uploads without a whole result": """
        SELECT count(*) FROM uploads WHERE processing_status = 'completed' AND (
            description IS NULL OR embedding_local IS NULL OR thumbnail_path IS NULL)""",
    "uploads that a run still owns": """
        SELECT count(*) FROM uploads WHERE owner_run_id IS NOT NULL""",
    "batches that are not completed": """
        SELECT count(*) FROM upload_batches WHERE status <> 'completed'""",
    "batches whose counters are not a recount": """
        SELECT count(*) FROM upload_batches b JOIN (
            SELECT batch_id, count(*) AS total,
                count(*) FILTER (WHERE processing_status = 'completed') AS good,
                count(*) FILTER (WHERE processing_status = 'failed') AS bad
            FROM uploads GROUP BY batch_id) r ON r.batch_id = b.id
        WHERE (b.total_uploads, b.processed_uploads, b.successful_uploads, b.failed_uploads)
            IS DISTINCT FROM (r.total, r.good + r.bad, r.good, r.bad)""",
}


class Soak:
    """The stack and its killer."""

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
        database = connect(self.settings)
        database.upgrade()
        database.close()
        self.pipeline = Pipeline(self.settings)
        variables = {f"BATCH_PIPELINE_{name.upper()}": str(v) for name, v in values.items()}
        self.processes = StackProcesses(home, variables)
        self.kills: Counter[str] = Counter()
        self._next_victims: list[str] = []

    def submit(self, count: int, folder: Path) -> list[uuid.UUID]:
        """Submit pictures that all differ, in several batches."""
        batches = []
        for first in range(0, count, UPLOADS_PER_BATCH):
            paths = []
            for number in range(first, min(count, first + UPLOADS_PER_BATCH)):
                path = folder / f"picture_{number:05}.jpg"
                colour = (number % 256, number // 256 * 16 % 256, number * 7 % 256)
                Image.new("RGB", (320, 240), colour).save(path)
                paths.append(path)
            submission = submit(
                paths,
                publisher=self.pipeline.publisher,
                storage=self.pipeline.storage,
                settings=self.settings,
            )
            assert submission.batch_id
            batches.append(submission.batch_id)
        return batches

    def kill_one(self) -> str:
        """Kill something, leave it dead for a moment, bring it back."""
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

    def count(self, statement: str) -> int:
        """Ask the database for one number."""
        with self.pipeline.database.transaction() as connection:
            return int(connection.execute(text(statement)).scalar_one())

    def left(self) -> int:
        """How many batches are still at work."""
        return self.count("SELECT count(*) FROM upload_batches WHERE status <> 'completed'")


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
    with (
        tempfile.TemporaryDirectory() as folder,
        ScriptedModelServer(latency_seconds=latency) as models,
    ):
        home = Path(folder)
        soak = Soak(home / "home", models, chance)
        (home / "pictures").mkdir()
        soak.submit(uploads, home / "pictures")
        with soak.processes:
            while soak.left():
                if time.monotonic() - begin > patience:
                    click.echo(f"not done within {patience:g} s")
                    break
                time.sleep(chance.expovariate(1 / mean_seconds))
                victim = soak.kill_one()
                done = soak.count("SELECT sum(processed_uploads) FROM upload_batches")
                click.echo(f"{time.monotonic() - begin:6.0f} s  {done:5} done  killed: {victim}")
        problems = {what: soak.count(statement) for what, statement in CHECKS.items()}
        spared = len(VICTIMS) - len(soak.kills)
        problems["parts that were never killed (work more uploads)"] = spared
        partial = list((home / "home" / "uploads").rglob(f"*{PARTIAL_SUFFIX}"))
        calls = len(models.calls_of("vision"))
        soak.pipeline.close()
        soak.postgres.close()
    kills = ", ".join(f"{victim} {soak.kills[victim]}" for victim in VICTIMS)
    click.echo(f"killed: {kills}; {soak.kills.total()} in all")
    click.echo(f"{len(partial)} partial files are left to the hourly part of the sweep")
    click.echo(f"{calls} descriptions asked for, for {uploads} uploads")
    for what, number in problems.items():
        click.echo(f"{'BAD ' if number else 'ok  '}{what}: {number}")
    sys.exit(any(problems.values()))


if __name__ == "__main__":
    main()
