"""The real stack, started once: webserver, daemon and code server, on an embedded PostgreSQL.

Tests use it like people: through the command line, Dagster's GraphQL, and a browser.
"""

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.demo import running_stack
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings
from batch_pipeline.testing.webhook_receiver import Receiver, webhook_receiver
from batch_pipeline_tests.integration.console import Console
from batch_pipeline_tests.patience import WAIT_SECONDS, wait_until

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"
#: The first test of a module starts the stack, processes a batch and waits for its run (seconds).
TEST_SECONDS = 480
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give all tests that share a stack to one worker, so that the stack is started once."""
    for item in items:
        if "acceptance" in Path(item.path).parts:
            item.add_marker(pytest.mark.acceptance)
            if "stack" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("acceptance"))
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


def clean_environment(**values: str) -> dict[str, str]:
    """Return this process's environment, with only these variables of ours and of Dagster."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((ENVIRONMENT_PREFIX, "DAGSTER_"))
    }
    return kept | values


@dataclass(frozen=True)
class GraphQl:
    """Dagster's API, used as its UI does."""

    url: str

    def __call__(self, query: str, **variables: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def runs_of(self, batch_id: str) -> list[dict[str, Any]]:
        query = """
          query ($tags: [ExecutionTag!]) {
            runsOrError(filter: {tags: $tags}) { ... on Runs { results {
              id runId status jobName tags { key value }
            } } }
          }
        """
        tags = [{"key": "batch_pipeline/batch_id", "value": batch_id}]
        return self(query, tags=tags)["runsOrError"]["results"]

    def ended_run_of(self, batch_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            runs = self.runs_of(batch_id)
            return runs[0] if runs and runs[0]["status"] in {"SUCCESS", "FAILURE"} else None

        return wait_until(ended, f"the run of batch {batch_id} ends")

    def events_of(self, run_id: str) -> list[dict[str, Any]]:
        query = """
          query ($run: ID!) { logsForRun(runId: $run, limit: 5000) {
           ... on EventConnection { events {
            __typename
            ... on MessageEvent { stepKey message eventType }
            ... on ExecutionStepFailureEvent {
              failureMetadata { metadataEntries { ...entry } } error { message }
            }
            ... on MaterializationEvent {
              assetKey { path } partition metadataEntries { ...entry }
            }
            ... on ObservationEvent { assetKey { path } partition metadataEntries { ...entry } }
          } } } }
          fragment entry on MetadataEntry {
            __typename label
            ... on TextMetadataEntry { text }
            ... on MarkdownMetadataEntry { mdStr }
            ... on IntMetadataEntry { intValue }
            ... on FloatMetadataEntry { floatValue }
          }
        """
        return self(query, run=run_id)["logsForRun"]["events"]


def metadata(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Metadata entries by label."""
    names = ("text", "mdStr", "intValue", "floatValue")
    return {e["label"]: next((e[name] for name in names if name in e), None) for e in entries}


@dataclass(frozen=True)
class RealStack:
    """A running stack, and methods to use it."""

    home: Path
    graphql: GraphQl

    def cli(self, *arguments: str | Path, expect: int | None = 0) -> Any:
        """Run a command with ``--json`` as a person would, and return what it printed."""
        console = Console(clean_environment(BATCH_PIPELINE_HOME=str(self.home)), self.home)
        answer = console(*arguments, "--json", seconds=2 * WAIT_SECONDS)
        assert expect is None or answer.code == expect, answer.err
        return answer.json


@contextmanager
def real_stack(home: Path, **variables: str) -> Iterator[RealStack]:
    """Start a separate stack whose environment contains only these variables.

    Other tests of this process name a Dagster database. With two stacks on one database, one of
    them processes nothing.
    """
    with ExitStack() as opened:
        with pytest.MonkeyPatch.context() as patch:
            for name in os.environ.keys() - clean_environment().keys():
                patch.delenv(name)
            for name, value in variables.items():
                patch.setenv(f"{ENVIRONMENT_PREFIX}{name}", value)
            settings = Settings(_env_file=None, home=home)
            # The server is already running, so tests can read the database between commands.
            opened.callback(Pipeline(settings).close)
            running = opened.enter_context(running_stack(settings))
        yield RealStack(home, GraphQl(running.url))


@pytest.fixture(scope="package")
def webhooks() -> Iterator[Receiver]:
    """The webhooks that the stack has sent."""
    with webhook_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="package")  # an idle stack also uses processor time; other tests need it
def stack(tmp_path_factory: pytest.TempPathFactory, webhooks: Receiver) -> Iterator[RealStack]:
    with real_stack(
        tmp_path_factory.mktemp("stack"),
        REPORT_FRESHNESS_HOURS="24",
        WEBHOOK_URLS=webhooks.url,
        WEBHOOK_SECRET=WEBHOOK_SECRET,
        WEBHOOK_ALLOW_PRIVATE="true",
    ) as started:
        yield started
