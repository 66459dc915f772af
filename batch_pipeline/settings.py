"""Typed settings: every ``BATCH_PIPELINE_*`` variable, described where it is defined.

Read from the environment and from ``.env`` files in the working directory and beside the home;
nothing else in the package reads the environment.
"""

import json
import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.home import default_home, nearest_home
from batch_pipeline.languages import canonical_tag, is_english
from batch_pipeline.masking import learn, learn_url, masked
from batch_pipeline.media.acceptance import FORMATS
from batch_pipeline.model_servers.prompts import read_prompts

ENVIRONMENT_PREFIX = "BATCH_PIPELINE_"
#: Behind a variable's name: the value is what the file holds, as container engines mount secrets.
FILE_SUFFIX = "_FILE"
#: Names with our prefix that are no settings: of our tests, and those that Kubernetes sets in every
#: pod beside a service named ``batch-pipeline``.
_NO_SETTING = re.compile(r"TEST_\w+|(\w+_)?SERVICE_(HOST|PORT)(_\w+)?|(\w+_)?PORT(_\d+_\w+)?")
#: Fields of a request to a model that are no options.
_NEVER_AN_OPTION = {"model", "messages", "input", "prompt", "stream"}


class AnalyzerName(StrEnum):
    """Who describes pictures and embeds text."""

    EMBEDDED = "embedded"
    OLLAMA = "ollama"
    OPENAI = "openai"


class VisionDetail(StrEnum):
    """How closely a hosted model looks at a picture."""

    DEFAULT = "default"
    LOW = "low"
    HIGH = "high"
    AUTO = "auto"


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


class Settings(BaseSettings):
    """Everything that can be set, with its default, unit and meaning."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    home: Path = Field(
        default_factory=default_home,
        description=(
            "Folder of the embedded database and of the default storage. Unless set: the nearest "
            "`.batch_pipeline` in the working directory or above it, else `batch_pipeline` among "
            "the user's data (Linux: `~/.local/share`)."
        ),
    )
    database_url: str = Field(
        "",
        description="PostgreSQL with pgvector for our tables; empty: the embedded server.",
    )
    dagster_database_url: str = Field(
        "",
        description=(
            "Database of Dagster's own storage; empty: the database `dagster` on the same server."
        ),
    )
    storage_url: str = Field(
        "",
        description=(
            "Where originals and thumbnails are kept: a path or any fsspec URL; "
            "empty: `uploads` under the home folder."
        ),
    )
    analyzer: AnalyzerName = Field(
        AnalyzerName.EMBEDDED,
        description="Who describes and embeds: `embedded`, `ollama` or `openai`.",
    )
    embedder: AnalyzerName | None = Field(
        None,
        description="Who embeds, if it is to be another than the analyzer.",
    )
    ollama_host: str = Field(
        "http://127.0.0.1:11434",
        description=(
            "Address of the Ollama server; several, with commas between, share the calls. `#4` "
            "behind one: it takes 4 calls of a kind at a time, whatever the limits below say."
        ),
    )
    openai_base_url: str = Field(
        "",
        description=(
            "Base URL of an OpenAI-compatible server, usually ending in `/v1`; several, with "
            "commas between, share the calls; `#4` as for Ollama."
        ),
    )
    openai_embedding_base_url: str = Field(
        "", description="Base URL for embeddings, if they come from other servers."
    )
    openai_api_key: SecretStr = Field(
        SecretStr(""), description="API key of the OpenAI-compatible server; many need none."
    )
    vision_model: str = Field("qwen3-vl:8b-instruct", description="Model that describes pictures.")
    embedding_model: str = Field(
        "qwen3-embedding:0.6b", description="Model that embeds descriptions."
    )
    embedding_dimensions: Annotated[int, Field(ge=1, le=2000)] = Field(
        1024, description="Length of an embedding; the width of the database column."
    )
    max_vision_calls: Annotated[int, Field(ge=1, le=256)] = Field(
        4,
        description=(
            "Calls to the vision model in flight at the same time: to each server, over all "
            "processes on the same database."
        ),
    )
    max_embedding_calls: Annotated[int, Field(ge=1, le=256)] = Field(
        4,
        description=(
            "Calls to the embedding model in flight at the same time: to each server, over all "
            "processes on the same database."
        ),
    )
    model_connect_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        10, description="Longest wait for a connection to a model server (seconds)."
    )
    model_read_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        300, description="Longest silence of a model server during a call (seconds)."
    )
    model_write_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        60, description="Longest stall while a picture is sent to a model server (seconds)."
    )
    model_total_seconds: Annotated[float, Field(gt=0, le=7200)] = Field(
        600, description="Longest one model call may take, whatever the server sends (seconds)."
    )
    model_proxy: str = Field(
        "",
        description=(
            "Proxy to the model servers: its address, or `environment` to go by `HTTPS_PROXY`, "
            "`HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` (never for loopback); empty: none."
        ),
    )
    vision_options: str = Field(
        "",
        description=(
            "More of the requests to the vision model, a JSON object: for Ollama options such as "
            '`{"num_ctx": 16384, "keep_alive": "1h"}`, for others fields of the body such as '
            '`{"reasoning_effort": "low"}`; `null` leaves a field out.'
        ),
    )
    embedding_options: str = Field(
        "", description="The same of the requests to the embedding model."
    )
    prompts: str = Field(
        "",
        description=(
            "Folder with prompts of your own: `image.txt`, `frame.txt`, `synthesis.txt`; those "
            "that are not there are ours (`batch-pipeline prompt --show`)."
        ),
    )
    prompt_place: bool = Field(
        False,
        description=(
            "A prompt that names `{place}` gets the place and country that people wrote into a "
            "file. Positions are never read."
        ),
    )
    language: str = Field(
        "",
        description=(
            "Language of descriptions, as a tag such as `de`, `pt-BR` or `zh-Hant`; one in another "
            "language is not stored; empty: English, which is not checked."
        ),
    )
    share_results: bool = Field(
        False,
        description=(
            "A file that another user has uploaded, too, gets a copy of its description; `false`: "
            "of the same user's only."
        ),
    )
    refresh_stale: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0,
        description=(
            "Descriptions made with another model, prompts or options than are set now, of which "
            "each sweep has so many redone (uploads a minute); 0: none, `reprocess --stale` does."
        ),
    )
    vision_detail: VisionDetail = Field(
        VisionDetail.DEFAULT,
        description=(
            "How closely an OpenAI-compatible server looks at a picture, which sets its price: "
            "`low`, `high` or `auto`; `default`: nothing is said."
        ),
    )
    vision_longest_side: Annotated[int, Field(ge=64, le=1568)] = Field(
        1568,
        description="Longest side of the pictures that a model gets; fewer cost less (pixels).",
    )
    vision_side_multiple: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description=(
            "Sides of the pictures that a model gets are multiples of this (pixels); "
            "0: what the model's name says."
        ),
    )
    max_concurrent_uploads: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="Uploads that one run works on at the same time (threads)."
    )
    uploads_per_run: Annotated[int, Field(ge=1, le=5000)] = Field(
        250, description="Slice of a batch that one run takes (uploads)."
    )
    max_runs_in_flight: Annotated[int, Field(ge=1, le=1000)] = Field(
        4,
        description=(
            "Runs of `process_batch` that may be queued or running at the same time; how many fit, "
            "PostgreSQL's `max_connections` says."
        ),
    )
    max_runs_per_user: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description=(
            "How many of them may be of the same user: one less keeps a place free for others; "
            "0: all."
        ),
    )
    warm_run_workers: bool = Field(
        True,
        description=(
            "On Linux, run workers are forked from a process that has imported everything; "
            "`false`: each imports it anew, for 2.6 s of a core."
        ),
    )
    max_attempts: Annotated[int, Field(ge=1, le=20)] = Field(
        2, description="Attempts per upload and dispatch, the first included."
    )
    retry_base_seconds: Annotated[float, Field(ge=0, le=600)] = Field(
        1.0,
        description=(
            "Delay before the second attempt (seconds); later ones wait 3, 7, 15 … times as long, "
            "each varied by chance."
        ),
    )
    max_files_per_batch: Annotated[int, Field(ge=1)] = Field(
        1000, description="Files that one submission may hold."
    )
    max_file_bytes: Annotated[int, Field(ge=1)] = Field(
        100 * 1024**2, description="Largest file accepted (bytes)."
    )
    accepted_formats: str = Field(
        "",
        description=(
            "Formats that are accepted, with commas between, e.g. `jpeg,heic,mp4`; empty: all "
            "that docs/formats.md lists."
        ),
    )
    max_decode_mib: Annotated[int, Field(ge=16)] = Field(
        512,
        description=(
            "What the decode of one file may take in memory, besides the file (MiB); as many "
            "are decoded at a time as there are cores."
        ),
    )
    max_batch_bytes: Annotated[int, Field(ge=1)] = Field(
        10 * 1024**3, description="Largest sum of the files of one submission (bytes)."
    )
    lease_seconds: Annotated[float, Field(ge=1)] = Field(
        120, description="Age of a heartbeat after which a claim is dead (seconds)."
    )
    keep_partitions_days: Annotated[int, Field(ge=1)] = Field(
        90, description="How long Dagster lists a batch as a partition after its end (days)."
    )
    group_event_writes: bool = Field(
        True,
        description=(
            "Run workers write Dagster's events in groups, 0.25 s behind at most; `false`: each "
            "event at once, as Dagster does."
        ),
    )
    keep_runs_days: Annotated[int, Field(ge=0)] = Field(
        90,
        description=(
            "How long Dagster keeps runs of ours and their events after their end (days); "
            "0: for ever."
        ),
    )
    log_format: LogFormat = Field(
        LogFormat.TEXT,
        description="Log lines of commands, sensors and runs: `text`, or `json` for machines.",
    )
    redis_url: str = Field("", description="Also publish progress on this Redis; empty: off.")
    celery_broker_url: str = Field(
        "",
        description=(
            "Broker of Celery workers, which then run the steps of every run (extra `celery`); "
            "empty: off."
        ),
    )

    @field_validator("vision_options", "embedding_options")
    @classmethod
    def _of_a_request(cls, value: str) -> str:
        try:
            options = json.loads(value or "{}")
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(options, dict):
            raise ValueError('not a JSON object; expected one such as {"temperature": 0.1}')
        if ours := sorted(options.keys() & _NEVER_AN_OPTION):
            raise ValueError(f"{', '.join(ours)} cannot be set; that is what is asked")
        if not isinstance(options.get("options", {}), dict):
            raise ValueError("its `options` are not a JSON object")
        return value

    @field_validator("prompts")
    @classmethod
    def _usable_prompts(cls, folder: str) -> str:
        if not folder:
            return ""
        absolute = str(Path(folder).expanduser().resolve())
        try:
            read_prompts(absolute)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return absolute

    @field_validator("language")
    @classmethod
    def _known_language(cls, tag: str) -> str:
        return canonical_tag(tag) if tag else ""

    @model_validator(mode="after")
    def _can_write_it(self) -> Self:
        if self.analyzer is AnalyzerName.EMBEDDED and not is_english(self.language):
            raise ValueError(
                f"the embedded analyzer writes English only: leave {ENVIRONMENT_PREFIX}LANGUAGE "
                f"empty, or set {ENVIRONMENT_PREFIX}ANALYZER to a model server"
            )
        return self

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @field_validator("accepted_formats")
    @classmethod
    def _known_formats(cls, formats: str) -> str:
        unknown = _names(formats) - set(FORMATS)
        if unknown:
            raise ValueError(
                f"not known: {', '.join(sorted(unknown))}; accepted are {', '.join(FORMATS)}"
            )
        return formats

    @cached_property
    def accepted_format_names(self) -> frozenset[str]:
        """The accepted formats, with the default filled in."""
        return _names(self.accepted_formats) or frozenset(FORMATS)

    @model_validator(mode="after")
    def _learn_secrets(self) -> Self:
        """Have passwords masked wherever something of the settings is quoted."""
        for value in self.__dict__.values():
            if isinstance(value, SecretStr):
                learn(value.get_secret_value())
            elif isinstance(value, str) and "://" in value:
                learn_url(value)
        return self

    @cached_property
    def storage_location(self) -> str:
        """Path or URL of the storage, with the default filled in."""
        return self.storage_url or str(self.home / "uploads")

    @property
    def embedder_name(self) -> AnalyzerName:
        """Who embeds, with the default filled in."""
        return self.embedder or self.analyzer


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


def env_files() -> tuple[Path, ...]:
    """Files that settings are read from; the last one that names a setting counts."""
    home, here = nearest_home(), Path(".env").absolute()
    beside = here if home is None else home.with_name(".env")
    return (here,) if beside == here else (beside, here)


def _unknown_names(files: tuple[Path, ...]) -> Iterator[str]:
    """Say of each variable that looks like one of ours where it stands, and what may be meant."""
    known = [name.upper() for name in Settings.model_fields]
    places = {"in the environment": list(os.environ)}
    places |= {f"in {file}": list(dotenv_values(file)) for file in files}
    for where, names in places.items():
        for name in names:
            rest = name.upper().removeprefix(ENVIRONMENT_PREFIX).removesuffix(FILE_SUFFIX)
            ours = name.upper().startswith(ENVIRONMENT_PREFIX)
            if not ours or rest in known or _NO_SETTING.fullmatch(rest):
                continue
            near = get_close_matches(rest, known, n=1)
            meant = "docs/settings.md lists all"
            if near:
                meant = f"did you mean {ENVIRONMENT_PREFIX}{near[0]}?"
            yield f"{name}, {where}: {meant}"


def _values_in_files(files: tuple[Path, ...]) -> dict[str, str]:
    """Read the settings whose variables name a file."""
    variables = {name: value for file in files for name, value in dotenv_values(file).items()}
    variables |= os.environ
    found = {}
    for field in Settings.model_fields:
        name = f"{ENVIRONMENT_PREFIX}{field.upper()}"
        path = variables.get(name + FILE_SUFFIX)
        if not path:
            continue
        if variables.get(name):
            raise ConfigurationError(f"both {name} and {name}{FILE_SUFFIX} are set: expected one")
        try:
            found[field] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{name}{FILE_SUFFIX}={path}: cannot be read: {error}"
            ) from error
    return {field: value for field, value in found.items() if value}


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment and ``.env``; those in `overrides` replace them.

    A variable with ``_FILE`` behind its name names a file that holds the value. In a subfolder of
    the folder with the home, its ``.env`` counts, too; one of the subfolder goes before it.

    Raises:
        ConfigurationError: a variable has a value that is not accepted, or the name of no setting;
            the message names each such variable, the value it has and what is accepted.
    """
    files = env_files()
    if unknown := list(_unknown_names(files)):
        raise ConfigurationError("there are no such settings:\n  " + "\n  ".join(unknown))
    try:
        return Settings(_env_file=files, **_values_in_files(files) | overrides)
    except ValidationError as error:
        lines = [
            f"{ENVIRONMENT_PREFIX}{'_'.join(str(part) for part in problem['loc']).upper()}"
            f"={masked(repr(problem['input']))}: {problem['msg']}"
            if problem["loc"]
            else problem["msg"]
            for problem in error.errors()
        ]
        raise ConfigurationError("settings are not valid:\n  " + "\n  ".join(lines)) from error
