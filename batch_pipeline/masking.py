"""Masks secrets in text before a person reads it; this is the only place for that.

A URL of the settings may contain a password, and a library may quote the URL or only the password.
Settings therefore register their secrets here (`learn`), and every text for a person (errors,
health lines, log lines) goes through `masked`. Anything that looks like a password in a URL is also
masked, whether it was registered or not.
"""

import logging
import re
import traceback
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

MASK = "***"
#: Shorter secrets are masked only in URLs: elsewhere they may be parts of ordinary words.
_SHORTEST = 4
#: Keys that local servers ignore, and passwords in examples. They are masked only in URLs, too,
#: because our own messages contain these words.
_PLACEHOLDERS = {
    *("dummy", "empty", "fake", "local", "none", "null", "password", "secret", "test"),
    *("dagster", "lm-studio", "localai", "ollama", "openai", "postgres", "redis", "vllm"),
}
_NAMES = r"pass(?:word|wd)?|pwd|secret\w*|\w*token|\w*key|key_id|sig(?:nature)?|credentials?|auth"
_USER_INFO = re.compile(r"(?<=://)([^\s/@:'\"?#]*):([^\s/'\"?#]*)@")
_QUERY = re.compile(rf"(?i)(?<=[?&;])((?:{_NAMES})=)[^&\s'\"#;]+")
_IS_SECRET = re.compile(rf"(?i)(?:{_NAMES})")

_learnt: set[str] = set()


def learn(value: str) -> None:
    """Register a secret that is not part of a URL, such as an API key."""
    if len(value) >= _SHORTEST and value.lower() not in _PLACEHOLDERS:
        if not _learnt:
            _mask_log_records()
        for form in (value, unquote(value)):
            # The forms that libraries write in a URL; SQLAlchemy leaves spaces and plus signs.
            _learnt.update({form, quote(form, safe=""), quote_plus(form), quote(form, safe=" +")})
            _learnt.add(repr(form)[1:-1])  # in a message that quotes a value


def learn_url(value: str) -> None:
    """Register the secrets in a URL, or in several URLs that are separated by commas."""
    for url in value.split(","):
        try:
            parts = urlsplit(url.strip())
            secrets = [parts.password or ""]
        except ValueError:
            continue
        secrets += [v for name, v in parse_qsl(parts.query) if _IS_SECRET.fullmatch(name)]
        for secret in filter(None, secrets):
            learn(secret)


def masked(text: str) -> str:
    """Replace every secret in a text."""
    if "://" in text:
        text = _QUERY.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\1:{MASK}@", text))
    for secret in sorted(_learnt, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def mask_chain(error: BaseException | None) -> None:
    """Mask the message of a library's error and of its causes: all of them may be printed."""
    while error is not None:
        error.args = tuple(masked(a) if isinstance(a, str) else a for a in error.args)
        error = error.__cause__ or error.__context__


def _mask_log_records() -> None:
    """Mask log records and their tracebacks when they are made, so for all handlers."""
    make = logging.getLogRecordFactory()

    def make_masked(*arguments: Any, **names: Any) -> logging.LogRecord:
        record = make(*arguments, **names)
        try:
            said = record.getMessage()
        except (TypeError, ValueError):
            return record  # logging itself reports what is wrong with the record
        if (text := masked(said)) != said:
            record.msg, record.args = text, ()
        if record.exc_info and record.exc_info[1]:
            trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
            if (text := masked(trace)) != trace:
                record.exc_text, record.exc_info = text, None
        return record

    logging.setLogRecordFactory(make_masked)
