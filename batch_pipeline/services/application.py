"""The interface for applications: ``from batch_pipeline import Filters, search``.

The settings name the database, the storage and the model. By default they are read from the
environment and ``.env``. The connections are opened once per process and shared by all threads.
"""

import uuid

from batch_pipeline.services.pipeline import shared_pipeline
from batch_pipeline.services.search.filters import Filters
from batch_pipeline.services.search.queries import SearchResults
from batch_pipeline.services.search.queries import search as search_database
from batch_pipeline.settings import Settings, load_settings


def search(
    text: str = "",
    *,
    like: uuid.UUID | None = None,
    filters: Filters | None = None,
    limit: int = 10,
    after: str | None = None,
    copies: bool = False,
    settings: Settings | None = None,
) -> SearchResults:
    """Find uploads by a question, or find uploads similar to another upload; best first.

    If the embedding model cannot be called, the search uses words only, and
    `SearchResults.by_words_only` says why.

    Args:
        text: the question, in any language that the model knows. Matches of a whole file name come
            first, then matches of phrases in quotation marks.
        like: an upload whose description is the question instead.
        filters: conditions that the uploads must meet; None: all uploads of all users.
        limit: maximum number of results, 1 to 5,000.
        after: the ``cursor`` of the last result of the previous page of the same search.
        copies: return every upload with the same bytes, not only one of them.
        settings: settings to use instead of those of the environment.

    Raises:
        RefusedError: an argument is not valid; the message says which.
        NotFoundError: there is no upload `like`.
        ConfigurationError: a setting is not valid.
        ServiceDownError: the database cannot be reached.
    """
    pipeline = shared_pipeline(settings or load_settings())
    return search_database(
        pipeline.database,
        pipeline.spaces.model_of,
        text,
        like=like,
        filters=filters,
        limit=limit,
        after=after,
        copies=copies,
        location=pipeline.settings.storage_location,
    )
