"""What applications call: ``from batch_pipeline import Filters, search``.

Database, storage and model are those that the settings name, from the environment and ``.env``, or
those that are given; they are opened once per process and shared by all threads.
"""

import uuid

from batch_pipeline.services.pipeline import shared_pipeline
from batch_pipeline.services.search import SearchResults
from batch_pipeline.services.search import search as search_database
from batch_pipeline.services.search_filters import Filters
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
    """Find uploads by what a person would say, or by an upload like which they are; best first.

    Args:
        text: what a person would say. A whole file name, and what stands in quotation marks, is
            found first.
        like: an upload whose description is the question instead.
        filters: what the uploads are narrowed to; None: all of all users.
        limit: how many, 1 to 5,000.
        after: the ``cursor`` of the last result of the page before, of the same search.
        copies: show each upload of the same bytes, and not only one of them.
        settings: other ones than those of the environment.

    Raises:
        RefusedError: the search cannot be made as it stands; the message says why.
        NotFoundError: there is no upload `like`.
        ConfigurationError: a setting is not valid.
        ServiceDownError: the database cannot be reached. If the model cannot, words alone answer,
            and `SearchResults.by_words_only` says why.
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
