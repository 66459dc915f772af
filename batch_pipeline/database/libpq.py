"""URLs in the form that libpq reads; psycopg and PostgreSQL's own programs use libpq.

SQLAlchemy accepts spaces and percent signs that are not encoded. It writes a space as a space or as
a plus sign: libpq refuses the space, and reads the plus sign as a plus. This module does not import
SQLAlchemy, because a health check must start quickly.
"""

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode

_URL = re.compile(
    r"[\w+]+://(?:(?P<user>[^:/@]*)(?::(?P<password>[^@]*))?@)?(?P<hosts>[^/?]*)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)


def libpq_url(url: str) -> str:
    """Convert a PostgreSQL URL from SQLAlchemy's form to libpq's; the driver is left out."""
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
