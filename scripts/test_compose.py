"""Tests the Compose stack in containers: `make test-compose` (needs a container engine, and root).

Builds the Dockerfile and starts compose.yaml as they are, in a copy of the project. Prints a line
for each thing that holds; ends at the first that does not. Parts named as arguments run alone:
build, kill, restart, restore, upgrade. All but the last need `build`.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Longest wait for one thing.
WAIT_SECONDS = 400
BATCHES = "SELECT count(*) FROM upload_batches WHERE status = 'completed'"
UPLOADS = "SELECT count(*) FROM uploads WHERE processing_status IN ('completed', 'failed')"
#: What a user of an older version has: a batch that waits, in tables of revision 0012.
OLDER_DATABASE = """
import pathlib, shutil, uuid
from alembic import command
from sqlalchemy import text
from batch_pipeline.database.session import _alembic_config, connect
from batch_pipeline.settings import Settings

user, batch, upload = (str(uuid.uuid4()) for _ in range(3))
path = f"{user}/{upload}/original.webp"
file = pathlib.Path("/data/uploads", path)
file.parent.mkdir(parents=True)
shutil.copy("/app/examples/media/fog.webp", file)
config = _alembic_config()
with connect(Settings()).engine.connect() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, "0012")
    connection.commit()
    connection.execute(
        text("INSERT INTO upload_batches (id, user_id, status, total_uploads)"
             " VALUES (:batch, :user, 'pending', 1)"), dict(batch=batch, user=user))
    connection.execute(
        text("INSERT INTO uploads (id, user_id, batch_id, filename, file_path, file_type,"
             " file_size, mime_type, processing_status) VALUES (:upload, :user, :batch,"
             " 'fog.webp', :path, 'image', :size, 'image/webp', 'pending')"),
        dict(upload=upload, user=user, batch=batch, path=path, size=file.stat().st_size))
    connection.commit()
"""


class Stack:
    """The project's Compose file, in a copy of the project."""

    def __init__(self, project: Path) -> None:
        # A name of its own: volumes of this name are removed, and a user's stack has another.
        file = project / "deploy" / "compose.yaml"
        self._compose = ["docker", "compose", "-p", "batch-pipeline-test", "-f", str(file)]

    def __call__(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self._compose, *words], capture_output=True, check=False, timeout=1800
        )
        if check and done.returncode:
            raise SystemExit(f"{' '.join(words)}: {done.stderr.decode()[-3000:]}")
        return done.stdout.decode(errors="replace").strip()

    def pipe(self, command: str) -> None:
        """Run a line of the shell, in which `COMPOSE` stands for this stack."""
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command.replace("COMPOSE", " ".join(self._compose))],
            check=True,
        )

    def up(self) -> None:
        self("up", "--detach", "--wait")

    def number(self, query: str) -> int:
        """Ask PostgreSQL; -1 while it does not answer."""
        answer = self(
            *("exec", "-T", "postgres", "psql", "-U", "batch_pipeline", "-Atc", query), check=False
        )
        return int(answer) if answer.isdigit() else -1

    def submit(self) -> int:
        """Submit many copies of the samples; returns how many batches will be complete."""
        before = self.number("SELECT count(*) FROM upload_batches")
        copies = "for i in 0 1 2 3 4 5 6 7; do cp -r /app/examples/media /tmp/copy$i; done"
        submit = "batch-pipeline submit /tmp/copy*"
        # The folder holds text files, too: they are refused, which is 1.
        command = f"{copies}; {submit} || [ $? = 1 ]; rm -r /tmp/copy*"
        self("exec", "-T", "code-location", "sh", "-c", command)
        if self.number("SELECT count(*) FROM upload_batches") != before + 1:
            raise SystemExit("no batch was made")
        return before + 1

    def kill(self, service: str) -> None:
        """End the first process of a container from outside, as a crash would."""
        container = self("ps", "--quiet", service)
        found = subprocess.run(
            ["docker", "inspect", "--format", "{{.State.Pid}}", container],
            capture_output=True,
            check=True,
        )
        os.kill(int(found.stdout), signal.SIGKILL)


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {WAIT_SECONDS} s: {what}")
        time.sleep(1)


def holds(what: str, since: float) -> None:
    print(f"ok  {what} ({time.monotonic() - since:.0f} s)", flush=True)


def build(stack: Stack, _: Path) -> None:
    start = time.monotonic()
    stack("up", "--build", "--detach", "--wait")
    holds("built and healthy, with a read-only root file system", start)


def kill(stack: Stack, _: Path) -> None:
    for service in ("code-location", "daemon", "webserver", "metrics", "postgres", "redis"):
        start = time.monotonic()
        done, batches = stack.number(UPLOADS), stack.submit()
        wait_until(lambda done=done: stack.number(UPLOADS) > done, "the first upload ends")
        in_work = stack.number(BATCHES) < batches
        stack.kill(service)
        wait_until(
            lambda batches=batches: stack.number(BATCHES) == batches, f"done without {service}"
        )
        when = "in mid-batch" if in_work else "after the batch"
        holds(f"{service} killed {when}: the batch completes", start)


def restart(stack: Stack, _: Path) -> None:
    for words in (("stop",), ("down",)):
        start = time.monotonic()
        batches = stack.submit()
        stack(*words)
        stack.up()
        wait_until(
            lambda batches=batches: stack.number(BATCHES) == batches, f"done after {words[0]}"
        )
        holds(f"{words[0]} and up: nothing is lost, the batch completes", start)


def restore(stack: Stack, folder: Path) -> None:
    start = time.monotonic()
    kept = stack.number(UPLOADS)
    dump = "COMPOSE exec -T postgres pg_dump -U batch_pipeline -Fc"
    files = "COMPOSE exec -T code-location tar -C /data/uploads"
    stack.pipe(
        f"{dump} batch_pipeline > {folder}/ours.dump; {dump} dagster > {folder}/dagster.dump"
    )
    stack.pipe(f"{files} -c . > {folder}/uploads.tar")
    stack("down", "--volumes")
    stack("up", "--detach", "--wait", "postgres")
    load = "COMPOSE exec -T postgres pg_restore -U batch_pipeline"
    stack.pipe(f"{load} -d batch_pipeline < {folder}/ours.dump")
    stack.pipe("COMPOSE exec -T postgres createdb -U batch_pipeline dagster")
    stack.pipe(f"{load} -d dagster < {folder}/dagster.dump")
    stack.up()
    stack.pipe(f"{files} -x < {folder}/uploads.tar")
    if stack.number(UPLOADS) != kept:
        raise SystemExit("the restored stack has other uploads")
    batches = stack.submit()
    wait_until(lambda: stack.number(BATCHES) == batches, "the restored stack works")
    holds("backup restored into an empty stack, which goes on", start)


def upgrade(stack: Stack, _: Path) -> None:
    start = time.monotonic()
    stack("down", "--volumes")
    stack("up", "--detach", "--wait", "postgres")
    stack("run", "--rm", "-T", "--no-deps", "migrate", "python", "-c", OLDER_DATABASE)
    if stack.number("SELECT version_num FROM alembic_version") != 12:
        raise SystemExit("the older database is not of revision 0012")
    stack.up()
    wait_until(lambda: stack.number(BATCHES) == 1, "the batch of the older database is processed")
    holds("upgraded from revision 0012, whose batch completes", start)


PARTS = (build, kill, restart, restore, upgrade)


def main() -> None:
    names = sys.argv[1:] or [part.__name__ for part in PARTS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = folder / "project"
        for line in (ROOT / ".dockerignore").read_text().splitlines():
            if line.startswith("!"):
                source, target = ROOT / line[1:], project / line[1:]
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        shutil.copytree(ROOT / "deploy", project / "deploy", dirs_exist_ok=True)
        shutil.copy(ROOT / ".dockerignore", project)
        example = (ROOT / "deploy" / ".env.example").read_text()
        ports = "UI_ADDRESS=127.0.0.1:13000\nMETRICS_ADDRESS=127.0.0.1:19464\n"
        (project / "deploy" / ".env").write_text(example + ports)
        stack = Stack(project)
        try:
            for part in PARTS:
                if part.__name__ in names:
                    part(stack, folder)
        finally:
            stack("down", "--volumes", check=False)


if __name__ == "__main__":
    main()
