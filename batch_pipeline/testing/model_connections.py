"""Closes connections to model servers. The product keeps them until its process ends."""

from batch_pipeline.model_servers import factory


def close_analyzers() -> None:
    """Close all connections of the analyzers built so far; none of them may be used again."""
    with factory._lock:
        factory._built.cache_clear()
        while factory._servers:
            factory._servers.pop().close()
