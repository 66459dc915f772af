"""Typed settings: every ``BATCH_PIPELINE_*`` variable, described where it is defined.

They are read from the environment, and from ``.env`` files in the working directory and next to the
home folder. No other module of the package reads the environment.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, unquote_plus, urlsplit

from dotenv import dotenv_values
from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.home import default_home, nearest_home
from batch_pipeline.languages import canonical_tag, is_english
from batch_pipeline.masking import learn, learn_url, masked
from batch_pipeline.media.acceptance import FORMATS
from batch_pipeline.model_servers.prompts import read_prompts
from batch_pipeline.webhook_secrets import secret_key

ENVIRONMENT_PREFIX = "BATCH_PIPELINE_"
#: Longest vector that pgvector can index.
MOST_DIMENSIONS = 4000
#: Suffix of a variable that names a file with the value; container engines mount secrets as files.
FILE_SUFFIX = "_FILE"
#: Names with our prefix that are not settings: those of our tests, and those that Kubernetes sets
#: in every pod if there is a service named ``batch-pipeline``.
_NO_SETTING = re.compile(r"TEST_\w+|(\w+_)?SERVICE_(HOST|PORT)(_\w+)?|(\w+_)?PORT(_\d+_\w+)?")
#: A URL as it is sent over HTTP.
_IN_ASCII = re.compile("[!-~]+")
#: What separates Apprise URLs, which may contain commas, for example between recipients of a mail.
_NEXT_URL = re.compile(r",\s*(?=[A-Za-z][\w+.-]*://)")
#: Schemes of webhooks and Apprise whose host is a server; in other URLs it may be a token.
_HOST_IS_A_SERVER = {"http", "https", "json", "jsons", "xml", "xmls", "form", "forms"}
#: Text that may also be in our own messages, such as `batch-pipeline`. It is masked only in URLs.
_WORDS = re.compile("[a-z]{1,16}([-_/][a-z]{1,16})*")
#: Settings that are a path; `storage_url` may be a URL.
_PATHS = {"home", "storage_url", "prompts"}
#: Settings whose URL may name files in its query: certificates, keys and passwords.
_WITH_FILES = {"database_url", "dagster_database_url", "redis_url", "celery_broker_url"}
#: The names of these files: those of libpq, and those of the client of Redis.
_FILE_IN_URL = re.compile(
    r"(?<=[?&])((?:sslcert|sslkey|sslrootcert|sslcrl|sslcrldir|passfile"
    r"|ssl_ca_certs|ssl_ca_path|ssl_certfile|ssl_keyfile)=)([^&#;]+)"
)
#: Beginning of a URL that names a path of this machine.
LOCAL_SCHEME = re.compile(r"(?:(?:file|local):(?://)?)?")
#: Settings in which a space at the end matters, as in ``query: ``.
_WITH_SPACE = {"embedding_question_prefix", "embedding_document_prefix"}
#: Fields of a request to a model that cannot be set as options.
_NEVER_AN_OPTION = {"model", "messages", "input", "prompt", "stream"}


class AnalyzerName(StrEnum):
    """Kinds of models that describe pictures and embed text."""

    EMBEDDED = "embedded"
    OLLAMA = "ollama"
    OPENAI = "openai"


class VisionDetail(StrEnum):
    """Image detail for a hosted model."""

    DEFAULT = "default"
    LOW = "low"
    HIGH = "high"
    AUTO = "auto"


class LogFormat(StrEnum):
    """Format of log lines."""

    TEXT = "text"
    JSON = "json"


class Settings(BaseSettings):
    """All settings, with default, unit and meaning."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    home: Path = Field(
        default_factory=default_home,
        description=(
            "Folder of the embedded database and the default storage. By default: the nearest "
            "`.batch_pipeline` in the working directory or above it, else `batch_pipeline` in the "
            "user's data folder (Linux: `~/.local/share`)."
        ),
    )
    database_url: str = Field(
        "",
        description="URL of PostgreSQL with pgvector for our tables; empty: the embedded server.",
    )
    dagster_database_url: str = Field(
        "",
        description=(
            "URL of the database for Dagster's own storage; empty: the database `dagster` on the "
            "same server."
        ),
    )
    storage_url: str = Field(
        "",
        description=(
            "Storage of originals and thumbnails: a path or any fsspec URL; empty: `uploads` in "
            "the home folder."
        ),
    )
    analyzer: AnalyzerName = Field(
        AnalyzerName.EMBEDDED,
        description=(
            "Kind of server that describes and embeds: `embedded` (no server), `ollama` or "
            "`openai`."
        ),
    )
    embedder: AnalyzerName | None = Field(
        None,
        description=(
            "Kind of server that embeds: `embedded` (no server), `ollama` or `openai`; empty: the "
            "same as `ANALYZER`."
        ),
    )
    ollama_host: str = Field(
        "http://127.0.0.1:11434",
        description=(
            "Address of the Ollama server. Several addresses, separated by commas, share the "
            "calls. `#4` at the end of an address limits this server to 4 vision calls and 4 "
            "embedding calls at a time, in place of the limits below."
        ),
    )
    ollama_api_key: SecretStr = Field(
        SecretStr(""),
        description=(
            "API key of the Ollama server, if a proxy in front of it asks for one; by default: "
            "the variable `OLLAMA_API_KEY` of Ollama's own client."
        ),
    )
    openai_base_url: str = Field(
        "",
        description=(
            "Base URL of an OpenAI-compatible server, usually ending in `/v1`. Several URLs and "
            "`#4` work as for Ollama."
        ),
    )
    openai_embedding_base_url: str = Field(
        "",
        description=(
            "Base URL of the servers for embeddings; empty: the same servers as for vision."
        ),
    )
    openai_api_key: SecretStr = Field(
        SecretStr(""), description="API key of the OpenAI-compatible server, if it needs one."
    )
    vision_model: str = Field("qwen3-vl:8b-instruct", description="Model that describes pictures.")
    embedding_model: str = Field(
        "qwen3-embedding:0.6b", description="Model that embeds descriptions."
    )
    embedding_dimensions: Annotated[int, Field(ge=1, le=MOST_DIMENSIONS)] = Field(
        1024,
        description=(
            "Length of an embedding. The pipeline asks the server for this length. If the server "
            "does not support that, set the model's own length."
        ),
    )
    embedding_question_prefix: str = Field(
        "",
        description=(
            "Text in front of each question that is embedded, `\\n` for a line break; `none`: "
            "no text. By default: what the model's card says, if we know the model "
            "(docs/model_servers.md)."
        ),
    )
    embedding_document_prefix: str = Field(
        "",
        description=(
            "Text in front of each description that is embedded; the same values as for questions. "
            "After a change, embed everything again."
        ),
    )
    max_vision_calls: Annotated[int, Field(ge=1, le=256)] = Field(
        4,
        description=(
            "Maximum number of vision calls in flight to each server, over all processes on the "
            "same database."
        ),
    )
    max_embedding_calls: Annotated[int, Field(ge=1, le=256)] = Field(
        4,
        description=(
            "Maximum number of embedding calls in flight to each server, over all processes on the "
            "same database."
        ),
    )
    model_connect_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        10, description="Longest wait for a connection to a model server (seconds)."
    )
    model_read_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        300, description="Longest silence of a model server during a call (seconds)."
    )
    model_write_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        60, description="Longest pause while a picture is sent to a model server (seconds)."
    )
    model_total_seconds: Annotated[float, Field(gt=0, le=7200)] = Field(
        600, description="Longest total duration of one model call (seconds)."
    )
    model_proxy: str = Field(
        "",
        description=(
            "Proxy for the model servers: its address, or `environment` to use `HTTPS_PROXY`, "
            "`HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` (never for loopback); empty: no proxy."
        ),
    )
    vision_options: str = Field(
        "",
        description=(
            "Additions to each request to the vision model, as a JSON object. For Ollama these are "
            'options such as `{"num_ctx": 16384, "keep_alive": "1h"}`, for other servers fields of '
            'the body such as `{"reasoning_effort": "low"}`; `null` removes a field.'
        ),
    )
    embedding_options: str = Field(
        "", description="Additions to each request to the embedding model, as a JSON object."
    )
    prompts: str = Field(
        "",
        description=(
            "Folder with your own prompts: `image.txt`, `frame.txt`, `synthesis.txt`. For a "
            "missing file the built-in prompt is used (`batch-pipeline prompt --show`)."
        ),
    )
    prompt_place: bool = Field(
        False,
        description=(
            "`true`: a prompt with `{place}` gets the place and country from the file's metadata, "
            "if a person wrote them there. GPS positions are never read."
        ),
    )
    language: str = Field(
        "",
        description=(
            "Language of descriptions, as a tag such as `de`, `pt-BR` or `zh-Hant`. A description "
            "in another language is not stored. Empty: English, which is not checked."
        ),
    )
    share_results: bool = Field(
        False,
        description=(
            "`true`: a file gets a copy of the description of an identical file, even of another "
            "user; `false`: only of an identical file of the same user."
        ),
    )
    refresh_stale: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0,
        description=(
            "Maximum number of stale descriptions that each sweep makes again (uploads a minute). "
            "Stale means: made with a model, prompt or options that are no longer set. 0: none, "
            "use `reprocess --stale`."
        ),
    )
    vision_detail: VisionDetail = Field(
        VisionDetail.DEFAULT,
        description=(
            "Image detail for an OpenAI-compatible server, which affects the price: `low`, `high` "
            "or `auto`; `default`: the field is not sent."
        ),
    )
    vision_longest_side: Annotated[int, Field(ge=64, le=1568)] = Field(
        1568,
        description=(
            "Longest side of pictures sent to a model (pixels); smaller pictures cost less."
        ),
    )
    vision_side_multiple: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description=(
            "Both sides of pictures sent to a model are multiples of this number (pixels); 0: the "
            "pipeline chooses the number by the name of the model."
        ),
    )
    max_concurrent_uploads: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="Uploads that one run processes at the same time (threads)."
    )
    uploads_per_run: Annotated[int, Field(ge=1, le=5000)] = Field(
        250, description="Maximum number of uploads of a batch that one run processes."
    )
    max_runs_in_flight: Annotated[int, Field(ge=1, le=1000)] = Field(
        4,
        description=(
            "Maximum number of runs of `process_batch` that are queued or running at the same "
            "time; PostgreSQL's `max_connections` limits how many are possible."
        ),
    )
    max_runs_per_user: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description=(
            "Maximum number of runs of one user that are queued or running at the same time; 0: no "
            "limit. One less than `MAX_RUNS_IN_FLIGHT` keeps a place free for other users."
        ),
    )
    max_uploads_per_user: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0,
        description=(
            "Maximum number of uploads of one user that runs hold at the same time: in progress, "
            "reserved, or in a run that was launched; 0: no limit. A run takes as many uploads as "
            "the limit allows. No run is launched before half of the limit is free."
        ),
    )
    warm_run_workers: bool = Field(
        True,
        description=(
            "On Linux, run workers are forked from a process that has imported everything; "
            "`false`: each run worker imports everything, which takes 2.6 s of processor time."
        ),
    )
    max_attempts: Annotated[int, Field(ge=1, le=20)] = Field(
        2, description="Maximum number of attempts per upload each time it is dispatched."
    )
    retry_base_seconds: Annotated[float, Field(ge=0, le=600)] = Field(
        1.0,
        description=(
            "Delay before the second attempt (seconds). Later attempts wait 3, 7, 15 … times as "
            "long, with jitter."
        ),
    )
    max_files_per_batch: Annotated[int, Field(ge=1)] = Field(
        1000, description="Maximum number of files in one submission."
    )
    max_file_bytes: Annotated[int, Field(ge=1)] = Field(
        100 * 1024**2,
        description=(
            "Largest file that `submit` accepts, and largest picture of an upload API that is "
            "processed (bytes)."
        ),
    )
    accepted_formats: str = Field(
        "",
        description=(
            "Accepted formats, separated by commas, e.g. `jpeg,heic,mp4`; empty: all formats in "
            "docs/formats.md."
        ),
    )
    max_decode_mib: Annotated[int, Field(ge=16)] = Field(
        512,
        description=(
            "Maximum memory for decoding one file, not counting the file itself (MiB). Each core "
            "decodes at most one file at a time."
        ),
    )
    max_batch_bytes: Annotated[int, Field(ge=1)] = Field(
        10 * 1024**3, description="Largest total size of one submission (bytes)."
    )
    lease_seconds: Annotated[float, Field(ge=1, le=86_400)] = Field(
        120, description="Age of a heartbeat after which its owner counts as dead (seconds)."
    )
    keep_partitions_days: Annotated[int, Field(ge=1, le=36_500)] = Field(
        90,
        description=(
            "How long Dagster keeps the partition and the reports of a batch after its end (days)."
        ),
    )
    group_event_writes: bool = Field(
        True,
        description=(
            "Run workers write Dagster's events in groups, at most 0.25 s late; `false`: each "
            "event at once, as Dagster does by default."
        ),
    )
    keep_runs_days: Annotated[int, Field(ge=0, le=36_500)] = Field(
        90,
        description=(
            "How long Dagster keeps our runs and their events after the run has ended (days); 0: "
            "for ever."
        ),
    )
    report_freshness_hours: Annotated[int, Field(ge=0, le=87_600)] = Field(
        0,
        description=(
            "How often a batch is expected to end (hours): if no batch has ended for longer, "
            "Dagster shows the asset `batch_report` as not fresh; 0: Dagster does not check this."
        ),
    )
    log_format: LogFormat = Field(
        LogFormat.TEXT,
        description="Format of log lines of commands, sensors and runs: `text` or `json`.",
    )
    redis_url: str = Field(
        "", description="URL of a Redis server on which progress is also published; empty: off."
    )
    dagster_ui_url: str = Field(
        "",
        description=(
            "URL of the Dagster UI, e.g. `http://127.0.0.1:3000`: the page of `search --html` then "
            "links to the runs of each batch; empty: no links."
        ),
    )
    webhook_urls: str = Field(
        "",
        description=(
            "URLs that receive webhooks (docs/notifications.md), separated by commas; empty: off."
        ),
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description=("Secret that signs webhooks: `whsec_` and 24 to 64 random bytes in base64."),
    )
    webhook_allow_private: bool = Field(
        False,
        description="Also send webhooks to addresses of this machine and of private networks.",
    )
    notify_urls: str = Field(
        "",
        description=(
            "Apprise URLs of chats and mailboxes that receive events, separated by commas (extra "
            "`notify`); empty: off."
        ),
    )
    celery_broker_url: str = Field(
        "",
        description=(
            "URL of the Celery broker. If set, Celery workers execute the steps of every run "
            "(extra `celery`); empty: off."
        ),
    )
    celery_processes: int = Field(
        2,
        ge=1,
        description=(
            "Number of processes of all Celery workers together (the sum of `--concurrency`). "
            "If there is a broker, connections to PostgreSQL are reserved for them."
        ),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _without_space_and_quotes(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str) and info.field_name not in _WITH_SPACE:
            return _bare(value)
        return value

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
            raise ValueError(f"{', '.join(ours)} cannot be set: the pipeline sets them")
        if not isinstance(options.get("options", {}), dict):
            raise ValueError("its `options` are not a JSON object")
        return value

    @model_validator(mode="after")
    def _usable_webhooks(self) -> Self:
        for url in self.webhook_url_list:
            try:
                parts = urlsplit(url)
                usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
                usable = bool(usable and _IN_ASCII.fullmatch(url))
            except ValueError:
                usable = False
            if not usable or parts.username or parts.fragment:
                raise ValueError(
                    f"{ENVIRONMENT_PREFIX}WEBHOOK_URLS: {masked(url)!r} cannot be used; expected "
                    "https://host/path, without a user name, spaces or letters that are not ASCII: "
                    "write them as xn--… in the host, and as %… in the path"
                )
        secret = self.webhook_secret.get_secret_value()
        if self.webhook_url_list or secret:
            try:
                secret_key(secret)
            except ValueError as error:
                raise ValueError(f"{ENVIRONMENT_PREFIX}WEBHOOK_SECRET: {error}") from error
        return self

    @cached_property
    def webhook_url_list(self) -> tuple[str, ...]:
        """Return the URLs of webhooks, without duplicates."""
        return _listed(*self.webhook_urls.split(","))

    @cached_property
    def notify_url_list(self) -> tuple[str, ...]:
        """Return the Apprise URLs, without duplicates."""
        return _listed(*_NEXT_URL.split(self.notify_urls))

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

    @field_validator("storage_url")
    @classmethod
    def _independent_of_folder(cls, location: str) -> str:
        return _begun_at(Path.cwd(), location) if location else ""

    @field_validator("dagster_ui_url")
    @classmethod
    def _of_a_web_server(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("not a web address; expected one such as http://127.0.0.1:3000")
        if "@" in urlsplit(url).netloc:
            raise ValueError("it has a user or password, which the links of pages would show")
        return url.rstrip("/")

    @field_validator("celery_broker_url")
    @classmethod
    def _checks_certificates(cls, url: str) -> str:
        if "rediss://" in url and "ssl_cert_reqs=" not in url:
            # The broker would accept any certificate; the result backend would fail in each run.
            raise ValueError(
                "Celery does not know how to check the certificate; expected "
                "rediss://host:6380/0?ssl_cert_reqs=required"
            )
        return url

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
        """Return the accepted formats; all formats by default."""
        return _names(self.accepted_formats) or frozenset(FORMATS)

    @model_validator(mode="after")
    def _learn_secrets(self) -> Self:
        """Register passwords, so that they are masked in every text that quotes a setting."""
        for value in self.__dict__.values():
            if isinstance(value, SecretStr):
                learn(value.get_secret_value())
            elif isinstance(value, str) and "://" in value:
                learn_url(value)
        # These URLs may contain a token anywhere.
        for url in (*self.webhook_url_list, *self.notify_url_list):
            parts = urlsplit(url)
            rest, path = url.partition("://")[2], parts.path.strip("/")
            learn(url)
            if len(rest) > 8 and (path or parts.scheme not in _HOST_IS_A_SERVER):
                learn(f"/{rest}" if _WORDS.fullmatch(rest) else rest)
            if len(path) > 8 and not _WORDS.fullmatch(path):
                learn(path)
        return self

    @cached_property
    def storage_location(self) -> str:
        """Return the path or URL of the storage; by default a folder in the home folder."""
        return self.storage_url or str(self.home / "uploads")

    @property
    def embedder_name(self) -> AnalyzerName:
        """Return what embeds; by default the analyzer."""
        return self.embedder or self.analyzer


def _bare(value: str) -> str:
    """Remove what was copied with a value: space or a line break, and quotes around the whole.

    Secrets often end in a line break, and ``docker run --env-file`` keeps quotes.
    """
    value = value.strip()
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if is_quoted else value


def _begun_at(folder: Path, location: str) -> str:
    """Resolve a relative path, or the path in a local URL, against `folder`; keep other URLs."""
    scheme = LOCAL_SCHEME.match(location)[0]  # type: ignore[index] # it matches every text
    path = location.removeprefix(scheme)
    return location if "://" in path else f"{scheme}{folder / os.path.expanduser(path)}"


def _with_files_at(folder: Path, url: str) -> str:
    """Return a URL with relative paths of files resolved against `folder`."""

    def begun(found: re.Match[str]) -> str:
        name, path = found.groups()
        if (name, path) == ("sslrootcert=", "system"):  # for libpq, this machine's certificates
            return found[0]
        return name + quote(str(folder / os.path.expanduser(unquote_plus(path))))

    return _FILE_IN_URL.sub(begun, url)


def _listed(*urls: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (url.strip(" ,") for url in urls))))


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


def env_files() -> tuple[Path, ...]:
    """Return the files that contain settings; a later file overrides an earlier one.

    Raises:
        ConfigurationError: the working directory was removed.
    """
    try:
        home, here = nearest_home(), Path(".env").absolute()
    except FileNotFoundError as error:
        raise ConfigurationError(
            "the working directory does not exist any more: change to another one"
        ) from error
    beside = here if home is None else home.with_name(".env")
    return (here,) if beside == here else (beside, here)


def _require_readable(files: tuple[Path, ...]) -> None:
    """Raise `ConfigurationError` if a file exists and is not text."""
    for file in files:
        try:
            if file.is_file():
                file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _unknown_names(files: tuple[Path, ...]) -> Iterator[str]:
    """Yield a message for each unknown variable with our prefix: its place, and a likely name."""
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


def _values_by_place(files: tuple[Path, ...]) -> dict[str, str]:
    """Read the settings whose value depends on the place where it is set.

    These are paths, URLs that may contain paths, and the values in files that ``…_FILE`` variables
    name. A relative path in a ``.env`` is relative to the folder of that file; in the
    environment, to the working directory.
    """
    places = [
        (Path.cwd(), _by_upper_name(os.environ)),
        *((file.parent, _by_upper_name(dotenv_values(file))) for file in reversed(files)),
    ]

    def first(name: str) -> tuple[Path, str]:
        found = ((folder, _bare(variables.get(name) or "")) for folder, variables in places)
        return next(((folder, value) for folder, value in found if value), (Path(), ""))

    values = {}
    for field in Settings.model_fields:
        name = f"{ENVIRONMENT_PREFIX}{field.upper()}"
        folder, value = first(name)
        folder_of_file, file = first(name + FILE_SUFFIX)
        if value and file:
            raise ConfigurationError(f"both {name} and {name}{FILE_SUFFIX} are set: expected one")
        if file:
            try:
                # Some editors put a mark (BOM) before the text.
                value = (folder_of_file / file).read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(
                    f"{name}{FILE_SUFFIX}={file}: cannot be read: {error}"
                ) from error
            folder = folder_of_file
        if value and field in _PATHS:
            values[field] = _begun_at(folder, value)
        elif value and field in _WITH_FILES:
            values[field] = _with_files_at(folder, value)
        elif value and file:
            values[field] = value
    return values


def _by_upper_name(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return variables by their names in upper case: the case of a name does not matter."""
    return {name.upper(): value for name, value in variables.items()}


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment and ``.env``; `overrides` replace them.

    A variable whose name ends in ``_FILE`` names a file with the value. The ``.env`` next to the
    home folder is also read; the ``.env`` in the working directory overrides it. A relative path
    in a ``.env`` is relative to the folder of that file.

    Raises:
        ConfigurationError: a variable has an invalid value, or is not the name of a setting; the
            message names each such variable, its value, and what is accepted. Or a ``.env`` cannot
            be read.
    """
    files = env_files()
    _require_readable(files)
    if unknown := list(_unknown_names(files)):
        raise ConfigurationError("there are no such settings:\n  " + "\n  ".join(unknown))
    try:
        return Settings(_env_file=files, **_values_by_place(files) | overrides)
    except ValidationError as error:
        lines = [
            f"{ENVIRONMENT_PREFIX}{'_'.join(str(part) for part in problem['loc']).upper()}"
            f"={masked(repr(problem['input']))}: {problem['msg']}"
            if problem["loc"]
            else problem["msg"]
            for problem in error.errors()
        ]
        raise ConfigurationError("settings are not valid:\n  " + "\n  ".join(lines)) from error
