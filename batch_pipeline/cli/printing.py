"""Output that several commands share."""

import json
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Print a value as JSON; moments as ISO 8601, ids as text."""
    click.echo(json.dumps(value, default=_json_value, indent=2))


def _json_value(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
