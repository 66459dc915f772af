#!/usr/bin/env python3
"""Write docs/settings.md from batch_pipeline/settings.py; a test keeps the two equal."""

from enum import Enum
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings

DOCUMENT = Path(__file__).parents[1] / "docs" / "settings.md"

HEAD = f"""\
# Settings

<!-- Written by scripts/write_settings_reference.py from batch_pipeline/settings.py: edit that. -->

A setting is read from the first of these places that has it:

1. an environment variable with the prefix `{ENVIRONMENT_PREFIX}`
2. the file `.env` in the working directory
3. the file `.env` beside the nearest `.batch_pipeline`, in the working directory or above it

An empty value means the default. A value that is not accepted, or an unknown name with this prefix,
stops every command and Dagster's code location at the start. The error names the variable, its
value and what is accepted.

If a name ends in `_FILE`, the variable names a file that contains the value, such as a secret that
Docker or Kubernetes mounts: `{ENVIRONMENT_PREFIX}DATABASE_URL_FILE=/run/secrets/database_url`.

A relative path in a `.env` file is relative to the folder of that file, so all processes use the
same path. In an environment variable, it is relative to the working directory. The same is true for
files in the query of a URL, such as `?sslrootcert=ca.pem`.

Dagster reads the settings when it starts: restart `dagster dev` after a change.

| variable | default | accepted | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """Render the document."""
    return HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def _row(name: str, field: FieldInfo) -> str:
    cells = (
        f"`{ENVIRONMENT_PREFIX}{name.upper()}`",
        _shown("" if field.default_factory else field.default),
        _accepted(field),
        field.description or "",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _shown(default: Any) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, Enum):
        default = default.value
    if default in {None, ""}:
        return ""
    return f"`{default}`"


def _accepted(field: FieldInfo) -> str:
    choices = [kind for kind in _types(field.annotation) if issubclass(kind, Enum)]
    if choices:
        return ", ".join(f"`{choice.value}`" for choice in choices[0])
    signs = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
    limits = [
        f"{sign} {getattr(limit, kind.__name__.lower())}"
        for limit in field.metadata
        for kind, sign in signs.items()
        if isinstance(limit, kind)
    ]
    if limits:
        return ", ".join(limits)
    names = {"str": "text", "int": "whole number", "float": "number", "Path": "path"}
    names |= {"SecretStr": "text", "bool": "`true`, `false`"}
    return names[_types(field.annotation)[0].__name__]


def _types(annotation: Any) -> list[type]:
    kinds = getattr(annotation, "__args__", [annotation])
    return [kind for kind in kinds if kind is not type(None)]


if __name__ == "__main__":
    DOCUMENT.write_text(reference(), encoding="utf-8")
