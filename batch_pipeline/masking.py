"""Secrets in text: replaced before anybody reads it, in one place.

A password stands in a URL of the settings, and a library may quote the URL, or the password alone.
Settings therefore tell here what is secret in them (`learn`), and every text on its way to a person
(errors, health lines, log lines) goes through `masked`. What looks like a password in a URL is
masked, too, whether it was learnt or not.
"""

import logging
import re
import traceback
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

MASK = "***"
#: Shorter ones are left where they stand alone: they would be found in ordinary words.
_SHORTEST = 4
_NAMES = r"pass(?:word|wd)?|pwd|secret\w*|\w*token|\w*key|key_id|sig(?:nature)?|credentials?|auth"
_USER_INFO = re.compile(r"(?<=://)([^\s/@:'\"?#]*):([^\s/'\"?#]*)@")
_QUERY = re.compile(rf"(?i)(?<=[?&;])((?:{_NAMES})=)[^&\s'\"#;]+")
_IS_SECRET = re.compile(rf"(?i)(?:{_NAMES})")

_learnt: set[str] = set()


def learn(value: str) -> None:
    """Note a secret that is none of a URL, such as an API key."""
    if len(value) >= _SHORTEST:
        if not _learnt:
            _mask_log_records()
        for form in (value, unquote(value)):
            # As libraries write it in a URL; SQLAlchemy leaves spaces and plus signs.
            _learnt.update({form, quote(form, safe=""), quote_plus(form), quote(form, safe=" +")})


def learn_url(value: str) -> None:
    """Note what is secret in a URL, or in several with commas between."""
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
    """Mask what an error of a library and those behind it say: somebody may print them all."""
    while error is not None:
        error.args = tuple(masked(a) if isinstance(a, str) else a for a in error.args)
        error = error.__cause__ or error.__context__


def _mask_log_records() -> None:
    """Mask log records when they are made, whichever handlers they go to, tracebacks included."""
    make = logging.getLogRecordFactory()

    def make_masked(*arguments: Any, **names: Any) -> logging.LogRecord:
        record = make(*arguments, **names)
        try:
            said = record.getMessage()
        except (TypeError, ValueError):
            return record  # logging says itself what is wrong with it
        if (text := masked(said)) != said:
            record.msg, record.args = text, ()
        if record.exc_info and record.exc_info[1]:
            trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
            if (text := masked(trace)) != trace:
                record.exc_text, record.exc_info = text, None
        return record

    logging.setLogRecordFactory(make_masked)
