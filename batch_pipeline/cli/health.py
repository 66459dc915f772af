"""Commands about the whole pipeline: its health, its metrics, its costs."""

import signal
import sys
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batch_pipeline.cli.option_rules import at_most_one, is_given, needs
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import FINISHED_WITH_FAILURES, OK, Session
from batch_pipeline.cli.types import LENGTH, TEXT, USER
from batch_pipeline.errors import PipelineError, RefusedError
from batch_pipeline.masking import masked

if TYPE_CHECKING:
    from datetime import timedelta
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


@click.command()
@click.option("--quick", is_flag=True, help="Do not send a question to the models.")
@click.option(
    "--longest-wait",
    type=LENGTH,
    default="6h",
    show_default=True,
    help="Fail if an upload has waited longer than this.",
)
@json_option
@click.pass_obj
def doctor(session: Session, quick: bool, longest_wait: "timedelta", as_json: bool) -> None:
    """Check database, storage, Dagster and models, with advice.

    Each model has to answer one question: which colour a red square has, or which of three texts
    are similar.

    \b
    Examples:
      batch-pipeline doctor
      batch-pipeline doctor --quick
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.orchestration.instance_health import check_dagster  # noqa: PLC0415
    from batch_pipeline.services.health.checks import check_health  # noqa: PLC0415

    checks = [
        *check_health(session.settings, quick=quick, longest_wait=longest_wait),
        *check_dagster(session.settings),
    ]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        session.console.print(terminal.health_table(checks))
    sys.exit(OK if all(check.ok for check in checks) else FINISHED_WITH_FAILURES)


@click.command()
@click.argument("part", type=click.Choice(["code-server", "daemon"]))
@click.option(
    "--host", type=TEXT, default="localhost", show_default=True, help="Host of the code server."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=4000,
    show_default=True,
    help="Port of the code server.",
)
@json_option
@click.pass_obj
def alive(session: Session, part: str, host: str, port: int, as_json: bool) -> None:
    """Check that a part of Dagster is alive; for containers.

    The exit code is 2 if the part is not alive.

    \b
    Examples:
      batch-pipeline alive code-server --port 4000
      batch-pipeline alive daemon
    """
    from batch_pipeline.services.health.liveness import check_code_server, check_daemon  # noqa: PLC0415

    is_daemon = part == "daemon"
    if is_daemon:
        if is_given("--host") or is_given("--port"):
            raise click.UsageError("--host and --port are for the code-server")
        session.require_home()
    said = check_daemon(session.settings) if is_daemon else check_code_server(host, port)
    if as_json:
        print_json({"part": part, "alive": True, "detail": said})
    else:
        click.echo(said)


@click.command()
@click.option(
    "--serve",
    "port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Keep running and serve http://HOST:PORT/metrics.",
)
@click.option(
    "--host",
    type=TEXT,
    default="127.0.0.1",
    show_default=True,
    help="Address that --serve binds to.",
)
@json_option
@at_most_one("--serve", "--json")
@needs("--host", "--serve")
@click.pass_obj
def metrics(session: Session, port: int | None, host: str, as_json: bool) -> None:
    """Print metrics for Prometheus.

    They show uploads by state, waiting times, times of stages, errors and model calls.

    \b
    Examples:
      batch-pipeline metrics
      batch-pipeline metrics --serve 9464
    """
    from prometheus_client import (  # noqa: PLC0415
        generate_latest,
        make_wsgi_app,
        start_http_server,
    )

    from batch_pipeline.services.reports.metrics import metrics_registry, read_metrics  # noqa: PLC0415

    read_from = (session.pipeline.database, session.pipeline.settings)
    registry = metrics_registry(*read_from)
    if port is not None:
        session.when_stopped = "Stopped serving metrics."
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            raise RefusedError(f"cannot listen at {host}:{port}: {error.strerror}") from error
        server.set_app(_with_reasons(make_wsgi_app(registry), session.report_error))
        session.report(f"Metrics are at http://{host}:{port}/metrics; Ctrl-C stops.")
        try:
            thread.join()
        finally:
            server.shutdown()
    elif as_json:
        print_json([sample._asdict() for sample in read_metrics(*read_from)])
    else:
        click.echo(generate_latest(registry).decode(), nl=False)


def _with_reasons(
    metrics_of: "WSGIApplication", report_error: Callable[[str], None]
) -> "WSGIApplication":
    """Answer 503 with the reason if the database is down, instead of a stack trace."""

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        try:
            return metrics_of(environ, start_response)
        except PipelineError as error:
            report_error(str(error))
            start_response(
                "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")]
            )
            return [masked(f"{error}\n").encode()]

    return answer


@click.command()
@click.option("--user", type=USER, help="Only calls for this user.")
@json_option
@click.pass_obj
def costs(session: Session, user: uuid.UUID | None, as_json: bool) -> None:
    """Show calls, tokens and seconds by user and model.

    \b
    Examples:
      batch-pipeline costs
      batch-pipeline costs --json | jq 'map(.tokens_in) | add'
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.model_costs import costs_by_user  # noqa: PLC0415

    spent = costs_by_user(session.pipeline.database, user)
    if as_json:
        print_json([{"user_id": of.user_id, **asdict(of.cost)} for of in spent])
    elif spent:
        session.console.print(terminal.costs_table(spent))
    else:
        click.echo("No model server has been called yet.")


def wait_for_interrupt(announce: Callable[[], None]) -> None:
    """Wait for Ctrl-C; it may come as soon as `announce` has been called."""
    import contextlib  # noqa: PLC0415

    with contextlib.suppress(KeyboardInterrupt):
        announce()
        signal.pause()
