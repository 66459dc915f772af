"""URLs as libpq reads them, and with it psycopg and PostgreSQL's own programs.

SQLAlchemy takes a space or a percent sign as it stands, and writes spaces as they are, or as a plus
sign; libpq refuses the one and takes the other for a plus. Imports nothing of SQLAlchemy, as a
health check has no time for it.
"""

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode

_URL = re.compile(
    r"[\w+]+://(?:(?P<user>[^:/@]*)(?::(?P<password>[^@]*))?@)?(?P<hosts>[^/?]*)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)


def libpq_url(url: str) -> str:
    """Write a URL of PostgreSQL, as SQLAlchemy reads it, for libpq; the driver is left out."""
    found = _URL.fullmatch(url)
    if found is None:
        return url
    user, password, hosts, database, query = found.groups()
    credentials = ":".join(_encoded(part) for part in (user, password) if part is not None)
    return "".join(
        (
            "postgresql://",
            f"{credentials}@" if user is not None else "",
            hosts,
            f"/{_encoded(database)}" if database is not None else "",
            f"?{urlencode(parse_qsl(query), quote_via=quote)}" if query else "",
        )
    )


def _encoded(part: str) -> str:
    return quote(unquote(part), safe="")
