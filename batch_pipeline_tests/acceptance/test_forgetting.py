"""A batch deleted from the command line, after a real Dagster has processed and reported it."""

import re
import secrets

import psycopg
import pytest
from PIL import Image

from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.database.libpq import libpq_url
from batch_pipeline_tests.patience import wait_until
from batch_pipeline_tests.traces import of_upload, traces

from .conftest import MEDIA

USER, OTHER = "3b0d2c8e-7c1f-4a55-9d53-0d6f5f0f1a01", "3b0d2c8e-7c1f-4a55-9d53-0d6f5f0f1a02"
PICTURES = re.compile(rb"data:image/[a-z+]+;base64,([A-Za-z0-9+/=]+)")


@pytest.fixture
def databases(stack):
    ours = libpq_url(embedded_server_url(stack.home))
    return [ours, re.sub(r"/[^/?]*(\?|$)", r"/dagster\1", ours, count=1)]


def reported_pictures(databases, batch_id):
    """Wait for a batch's report. Return the pictures in its events, and those of other batches."""

    def said():
        with psycopg.connect(databases[1]) as connection:
            return connection.execute(
                "SELECT coalesce(asset_key, ''), event, partition = %s FROM event_logs"
                " WHERE partition IS NOT NULL",
                [batch_id],
            ).fetchall()

    wait_until(
        lambda: any("batch_report" in key and its_own for key, _, its_own in said()),
        f"batch {batch_id} is reported",
    )
    pictures = {True: set(), False: set()}
    for _, event, its_own in said():
        pictures[its_own].update(PICTURES.findall(event.encode()))
    return pictures[True], pictures[False]


def write_picture(path, *, cut=False):
    """Write a unique picture: equal pictures would have equal thumbnails."""
    with Image.open(MEDIA / "brick_wall.jpg") as wall:
        wall.paste(tuple(secrets.token_bytes(3)), (0, 0, wall.width // 2, wall.height // 4))
        wall.save(path)
    if cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def submit(stack, folder, user):
    done = stack.cli("submit", folder, "--user", user, "--wait", expect=None)
    return done | {"run": stack.graphql.ended_run_of(done["batch_id"])["runId"]}


def re_execute_from_failure(stack, run_id, batch_id):
    """Press the button; the plan of the new run names the steps of the previous run."""
    mutation = """mutation ($run: String!) { launchRunReexecution(
        reexecutionParams: {parentRunId: $run, strategy: FROM_FAILURE}
      ) { ... on LaunchRunSuccess { run { runId } } } }"""
    again = stack.graphql(mutation, run=run_id)["launchRunReexecution"]["run"]["runId"]

    def has_ended():
        runs = {run["runId"]: run["status"] for run in stack.graphql.runs_of(batch_id)}
        return runs.get(again) in {"SUCCESS", "FAILURE"}

    wait_until(has_ended, f"run {again} ends")


@pytest.mark.slow
def test_nothing_of_a_deleted_batch_is_found_in_databases_storage_or_home(
    stack, databases, tmp_path
):
    wedding, christening = tmp_path / "wombat_wedding", tmp_path / "heron_christening"
    wedding.mkdir()
    write_picture(wedding / "dancing_wombat.jpg")
    write_picture(wedding / "torn_wombat_veil.jpg", cut=True)
    christening.mkdir()
    write_picture(christening / "heron_in_reeds.jpg")
    write_picture(christening / "torn_heron_feather.jpg", cut=True)
    batch = submit(stack, wedding, USER)
    others = submit(stack, christening, OTHER)
    re_execute_from_failure(stack, batch["run"], batch["batch_id"])
    folders = [stack.home / "uploads", stack.home / "dagster"]
    described = batch["status"]["uploads"][0]["description"] or ""
    described += batch["status"]["uploads"][1]["description"] or ""
    thumbnails = [path.read_bytes() for path in (folders[0] / USER).rglob("thumb_256.jpg")]
    pictures_kept, _ = reported_pictures(databases, others["batch_id"])
    pictures, pictures_of_others = reported_pictures(databases, batch["batch_id"])
    kept = [b"heron_in_reeds", b"heron_christening", *pictures_kept]
    # Batches that took the same course have the same chart.
    gone = [b"wombat", described.encode(), *thumbnails, *(pictures - pictures_of_others)]
    found = traces(gone, databases, folders)
    assert {needle for _, needle in found} == set(gone)
    assert {"uploads", "event_logs", "runs", "run_tags", "snapshots"} <= {p for p, _ in found}
    before = {needle for _, needle in traces(kept, databases, folders)}
    assert before == set(kept)

    counted = stack.cli("delete", "batch", batch["batch_id"][:13], "--dry-run")
    receipt = stack.cli("delete", "batch", batch["batch_id"][:13], "--yes")

    ids = [one for upload in batch["upload_ids"] for one in of_upload(upload)]
    assert traces([*gone, *ids], databases, folders) == []
    assert {needle for _, needle in traces(kept, databases, folders)} == before
    assert counted["counts"]["uploads"] == receipt["counts"]["uploads"] == 2
    assert receipt["batches"] == [batch["batch_id"]]
    assert receipt["at"]
    assert "wombat" not in str(receipt)
    assert stack.graphql.runs_of(batch["batch_id"]) == []
