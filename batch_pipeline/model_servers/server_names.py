"""What a model server is called: in messages, and in tables that all hosts read."""

import socket
from urllib.parse import urlsplit, urlunsplit

from batch_pipeline.masking import masked

#: Between a loopback address and its host in a name for all hosts.
_OF = " of "


def shown_address(url: str) -> str:
    """An address without the user's name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def name_for_all_hosts(server: str) -> str:
    """What a server is called in tables: a loopback address is another one on each host.

    A name that has its host already stays as it is.
    """
    if _OF in server:
        return server
    server = masked(shown_address(server)).rstrip("/")
    if (urlsplit(server).hostname or "") in {"localhost", "127.0.0.1", "::1"}:
        return f"{server}{_OF}{socket.gethostname()}"
    return server
