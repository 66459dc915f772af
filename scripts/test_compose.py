"""Tests the Compose stack in containers: `make test-compose` (needs a container engine, and root).

It builds the Dockerfile and starts compose.yaml unchanged, in a copy of the project. It prints a
line for each check that passes, and ends at the first that fails. Arguments name the parts to run:
build, kill, restart, restore, upgrade, kubernetes. Kill, restart and restore need `build`.

Commands from a document are read from that document and run unchanged.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: Longest wait for one condition (seconds).
WAIT_SECONDS = 400
#: Name of the project. Its volumes are removed, so it must differ from the name of a user's stack.
NAME = "batch-pipeline-test"
BATCHES = "SELECT count(*) FROM upload_batches WHERE status = 'completed'"
UPLOADS = "SELECT count(*) FROM uploads WHERE processing_status IN ('completed', 'failed')"
HELD = (
    "SELECT count(*) FROM uploads WHERE owner_run_id IS NOT NULL"
    " OR processing_status IN ('analyzing', 'embedding')"
)
#: A checksum of everything that is stored about each ended upload, by id.
ENDED = (
    "SELECT id, md5(uploads::text || (SELECT coalesce(string_agg(vector::text, ' '), '')"
    " FROM upload_vectors WHERE upload_id = id))"
    " FROM uploads WHERE processing_status IN ('completed', 'failed')"
)
ENDED_TWICE = "SELECT count(*) - count(DISTINCT upload_id) FROM ended_uploads"
_RUN_ENDED = "('SUCCESS', 'FAILURE', 'CANCELED')"
OPEN_RUNS = f"SELECT count(*) FROM runs WHERE status NOT IN {_RUN_ENDED}"
ENDED_RUNS = f"SELECT run_id, status FROM runs WHERE status IN {_RUN_ENDED}"
#: Records each end of an upload in the database itself, without our code.
WITNESS = """
CREATE TABLE ended_uploads (upload_id uuid, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION note_ended_upload() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO ended_uploads VALUES (NEW.id); RETURN NEW; END';
CREATE TRIGGER note_ended_upload AFTER UPDATE ON uploads FOR EACH ROW
    WHEN (NEW.processing_status IN ('completed', 'failed')
          AND NEW.processing_status IS DISTINCT FROM OLD.processing_status)
    EXECUTE FUNCTION note_ended_upload();
"""
#: Searches for the samples: by meaning, by word and by name.
QUESTIONS = ("flowers in the sun", "brick", "fog.webp", "water at night")
#: Makes the tables of a user of an older version.
OLDER_TABLES = ROOT / "batch_pipeline_tests/integration/database/revision_0004.sql"
#: Makes a pending batch in these tables.
OLDER_BATCH = """
import pathlib, shutil, uuid
from sqlalchemy import text
from batch_pipeline.database.session import connect
from batch_pipeline.settings import Settings

user, batch, upload = (str(uuid.uuid4()) for _ in range(3))
path = f"{user}/{upload}/original.webp"
file = pathlib.Path("/data/uploads", path)
file.parent.mkdir(parents=True)
shutil.copy("/app/examples/media/fog.webp", file)
database = connect(Settings())
with database.transaction() as connection:
    connection.execute(
        text("INSERT INTO upload_batches (id, user_id, status, total_uploads)"
             " VALUES (:batch, :user, 'pending', 1)"), dict(batch=batch, user=user))
    connection.execute(
        text("INSERT INTO uploads (id, user_id, batch_id, filename, file_path, file_type,"
             " file_size, mime_type, processing_status) VALUES (:upload, :user, :batch,"
             " 'fog.webp', :path, 'image', :size, 'image/webp', 'pending')"),
        dict(upload=upload, user=user, batch=batch, path=path, size=file.stat().st_size))
"""


class Stack:
    """The project's Compose file, in a copy of the project."""

    def __init__(self, project: Path) -> None:
        self._here: dict[str, Any] = {
            "cwd": project,
            "env": os.environ | {"COMPOSE_PROJECT_NAME": NAME},
            "stdin": subprocess.DEVNULL,
        }

    def docker(self, *words: str, check: bool = True) -> str:
        """Run a command of the container engine in the project; return its output."""
        done = subprocess.run(
            ["docker", *words], **self._here, capture_output=True, check=False, timeout=1800
        )
        if check and done.returncode:
            raise SystemExit(f"docker {' '.join(words)}: {done.stderr.decode()[-3000:]}")
        return done.stdout.decode(errors="replace").strip()

    def __call__(self, *words: str, check: bool = True) -> str:
        """Run a command of Compose."""
        return self.docker("compose", "-f", "deploy/compose.yaml", *words, check=check)

    def follow(self, document: str, title: str) -> None:
        """Run the commands of the first example under a title of a document."""
        section = (ROOT / "docs" / document).read_text().split(f"\n### {title}\n", 1)[1]
        found = re.search("```console\n(.+?)```", section, re.DOTALL)
        if not found:
            raise SystemExit(f"{document} has no commands under {title}")
        for line in found[1].splitlines():
            done = subprocess.run(
                ["bash", "-c", line], **self._here, capture_output=True, check=False
            )
            # The document says that `tar` may end with 1 if a file changed meanwhile.
            changed = done.returncode == 1 and " tar -c " in line
            expect(done.returncode == 0 or changed, f"{line}\n{done.stderr.decode()[-3000:]}")

    def up(self) -> None:
        self("up", "--detach", "--wait")

    def ours(self, *words: str) -> str:
        """Run a command in the container of the code location."""
        return self("exec", "-T", "code-location", *words)

    def psql(self, query: str, *, database: str = "batch_pipeline", check: bool = True) -> str:
        psql = ("psql", "-U", "batch_pipeline", "-d", database, "-v", "ON_ERROR_STOP=1", "-Atc")
        return self("exec", "-T", "postgres", *psql, query, check=check)

    def pairs(self, query: str, *, database: str = "batch_pipeline") -> dict[str, str]:
        """Run a query with two columns."""
        lines = self.psql(query, database=database).splitlines()
        return dict(line.split("|", 1) for line in lines)

    def number(self, query: str, *, database: str = "batch_pipeline") -> int:
        """Run a query with one number; -1 if PostgreSQL does not answer."""
        answer = self.psql(query, database=database, check=False)
        return int(answer) if answer.isdigit() else -1

    def submit(self, paths: str = "/app/examples/media") -> int:
        """Submit files of the container; return how many batches will be completed then."""
        before = self.number("SELECT count(*) FROM upload_batches")
        # The folder of samples also has text files. They are refused, so the exit code is 1.
        self.ours("sh", "-c", f"batch-pipeline submit {paths} || [ $? = 1 ]")
        expect(self.number("SELECT count(*) FROM upload_batches") == before + 1, "a batch was made")
        return before + 1

    def submit_and_wait_for_work(self, copies: int) -> int:
        """Do the same as `submit`; on return, some uploads have ended and others are in progress.

        Each of the seven JPEG files among the samples is submitted `copies` times, each time with
        another number at its end. Identical files would count as one file.
        """
        done = self.number(UPLOADS)
        numbers = " ".join(str(done + number) for number in range(copies))
        copy = "(cat $file; echo $number) > /tmp/copies/$number-${file##*/}"
        each = f"for file in /app/examples/media/*.jpg; do {copy}; done"
        every = f"for number in {numbers}; do {each}; done"
        self.ours("sh", "-c", f"rm -rf /tmp/copies; mkdir /tmp/copies; {every}")
        batches = self.submit("/tmp/copies")
        wait_until(lambda: self.number(UPLOADS) > done, "the first upload ends")
        expect(self.number(BATCHES) < batches, "the batch is still in progress")
        return batches

    def wait_for(self, batches: int, what: str) -> None:
        """Wait until this many batches are completed, and check that nothing is left behind."""
        wait_until(lambda: self.number(BATCHES) == batches, what)
        expect(self.number(HELD) == 0, f"{what}: no run holds an upload")
        expect(self.number(ENDED_TWICE) == 0, f"{what}: each upload ended once")
        wait_until(lambda: self.number(OPEN_RUNS, database="dagster") == 0, "every run ends")

    def kill(self, service: str) -> None:
        """Kill the first process of a container from outside, as in a crash."""
        os.kill(int(self._state(service, "Pid")), signal.SIGKILL)

    def exit_code(self, service: str) -> int:
        return int(self._state(service, "ExitCode"))

    def _state(self, service: str, name: str) -> str:
        container = self("ps", "--all", "--quiet", service)
        return self.docker("inspect", "--format", f"{{{{.State.{name}}}}}", container)


@dataclass
class Kept:
    """The data of a user: all ended uploads, and how the first batch is shown."""

    rows: dict[str, str]
    """Rows with their vectors, as exported, by id."""
    files: dict[str, str]
    """Checksums of originals and thumbnails, by path."""
    searches: dict[str, str]
    """Results by question."""
    report: str
    runs: dict[str, str]
    """States of runs that have ended, by id."""

    @classmethod
    def of(cls, stack: Stack) -> "Kept":
        """Read everything; the stack must be running."""
        user = stack.psql("SELECT DISTINCT user_id FROM uploads")
        stack.ours("sh", "-c", f"rm -rf /tmp/kept; batch-pipeline export {user} /tmp/kept")
        exported = map(json.loads, stack.ours("cat", "/tmp/kept/uploads.jsonl").splitlines())
        rows = [row for row in exported if row["processing_status"] in ("completed", "failed")]
        done = [row for row in rows if row["processing_status"] == "completed"]
        expect(bool(done) and all(row["vectors"] for row in done), "every upload has a vector")

        sums = "cd /data/uploads; find * -type f -exec sha256sum {} + 2>/dev/null || true"
        stored = {
            path: digest
            for digest, path in map(str.split, stack.ours("sh", "-c", sums).splitlines())
        }
        paths = {row[name] for row in rows for name in ("file_path", "thumbnail_path") if row[name]}
        expect(paths <= set(stored), f"every file of a row is stored: {paths - set(stored)}")

        first = stack.psql("SELECT id FROM upload_batches ORDER BY created_at LIMIT 1")
        search = ("batch-pipeline", "search", "--batch", first, "--limit", "50", "--json")
        searches = {question: stack.ours(*search, question) for question in QUESTIONS}
        expect(all(json.loads(found) for found in searches.values()), "every question has results")
        page = f"batch-pipeline report {first} --html /tmp/page.html >&2; cat /tmp/page.html"
        report = re.sub("(?<=Made by batch-pipeline at )[^.]+", "", stack.ours("sh", "-c", page))
        return cls(
            {row["id"]: json.dumps(row) for row in rows},
            {path: stored[path] for path in paths},
            searches,
            report,
            stack.pairs(ENDED_RUNS, database="dagster"),
        )

    def require_in(self, later: "Kept") -> None:
        """End with an error unless all of it still exists, unchanged, in `later`."""
        for name in ("rows", "files", "searches", "runs"):
            require_kept(getattr(self, name), getattr(later, name), name)
        expect(later.report == self.report, "the report of the first batch is the same")


def require_kept(before: dict[str, str], after: dict[str, str], what: str) -> None:
    """End with an error unless everything in `before` is unchanged in `after`."""
    for key, value in before.items():
        if after.get(key) != value:
            raise SystemExit(f"{what}, {key}:\n{value}\nbecame\n{after.get(key)}")


def expect(true: bool, what: str) -> None:
    if not true:
        raise SystemExit(f"does not hold: {what}")


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {WAIT_SECONDS} s: {what}")
        time.sleep(1)


@contextlib.contextmanager
def holds(what: str) -> Iterator[None]:
    """Print that a check has passed, and its duration, if the block raises no error."""
    start = time.monotonic()
    yield
    print(f"ok  {what} ({time.monotonic() - start:.0f} s)", flush=True)


def build(stack: Stack) -> None:
    with holds("built and healthy, with a read-only root file system"):
        stack("up", "--build", "--detach", "--wait")
    stack.psql(WITNESS)
    with holds("the samples are processed"):
        stack.wait_for(stack.submit(), "the samples")


def kill(stack: Stack) -> None:
    for service in ("code-location", "daemon", "webserver", "metrics", "postgres", "redis"):
        with holds(f"{service} killed in mid-batch: the batch completes, each upload once"):
            batches = stack.submit_and_wait_for_work(copies=10)
            stack.kill(service)
            stack.wait_for(batches, f"{service} killed")


def restart(stack: Stack) -> None:
    for word in ("stop", "down"):
        with holds(f"{word} and up in mid-batch: nothing is held, lost, changed or done twice"):
            kept = Kept.of(stack)
            batches = stack.submit_and_wait_for_work(copies=40)
            stack(word)
            if word == "stop":
                expect(stack.exit_code("code-location") == 0, "the code location ended by itself")
            stack("up", "--detach", "--wait", "postgres")
            expect(stack.number(HELD) == 0, f"after {word}, no run holds an upload")
            expect(stack.number(BATCHES) < batches, f"{word} came in the middle of the batch")
            ended = stack.pairs(ENDED)
            stack.up()
            stack.wait_for(batches, word)
            require_kept(ended, stack.pairs(ENDED), "what had ended before")
            kept.require_in(Kept.of(stack))


def restore(stack: Stack) -> None:
    with holds("backup in mid-batch, restored into an empty stack: it has all, and completes it"):
        kept = Kept.of(stack)
        batches = stack.submit_and_wait_for_work(copies=40)
        ended = stack.pairs(ENDED)
        stack.follow("deployment.md", "Back up")
        stack("down", "--volumes")
        stack.follow("deployment.md", "Restore")
        stack.wait_for(batches, "restored")
        require_kept(ended, stack.pairs(ENDED), "what had ended before the backup")
        kept.require_in(Kept.of(stack))
        stack.wait_for(stack.submit(), "another batch after the restore")
        tidied = json.loads(stack.ours("batch-pipeline", "tidy", "--json"))
        expect(tidied["owner"], "the restored database owns the files")


def upgrade(stack: Stack) -> None:
    with holds("upgraded from revision 0004, whose batch completes"):
        stack("down", "--volumes")
        stack("up", "--detach", "--wait", "postgres")
        stack.psql(OLDER_TABLES.read_text())
        stack("run", "--rm", "-T", "--no-deps", "migrate", "python", "-c", OLDER_BATCH)
        stack.psql(WITNESS)
        stack.up()
        stack.wait_for(1, "the batch of the older database")


def kubernetes(stack: Stack) -> None:
    with holds("the image for Kubernetes is built, and opens the launcher of pods"):
        tag = "batch-pipeline:kubernetes"
        stack.docker("build", "-f", "deploy/Dockerfile", "--build-arg", "EXTRA=kubernetes",
                     "-t", tag, ".")  # fmt: skip
        # The same restrictions as in a restricted cluster.
        restricted = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL",
                      "--security-opt=no-new-privileges")  # fmt: skip
        imports = "import batch_pipeline.definitions, dagster_aws.s3, dagster_k8s.launcher, s3fs"
        stack.docker("run", "--rm", *restricted, tag, "python", "-W", "ignore", "-c", imports)
    for name in ("batch-pipeline", tag):
        size = int(stack.docker("image", "inspect", "--format", "{{.Size}}", name))
        print(f"    {name}: {size / 1e6:.0f} MB", flush=True)


PARTS = (build, kill, restart, restore, upgrade, kubernetes)


def main() -> None:
    names = sys.argv[1:] or [part.__name__ for part in PARTS]
    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
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
                    part(stack)
        finally:
            stack("down", "--volumes", check=False)


if __name__ == "__main__":
    main()
