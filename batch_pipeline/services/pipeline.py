"""The shared objects of the pipeline, opened once from the settings."""

import threading
import uuid
from functools import cached_property

from batch_pipeline.database.session import open_database
from batch_pipeline.errors import ServiceDownError, WorkPausedError
from batch_pipeline.model_servers.base import WORK_PAUSED, Analyzer, CallSlots
from batch_pipeline.services.deletion.file_ownership import FileOwnership
from batch_pipeline.services.model_costs import Account
from batch_pipeline.services.pauses import Pauses, why_paused
from batch_pipeline.services.progress.publishing import ProgressPublisher
from batch_pipeline.services.search.embedding_spaces import Spaces
from batch_pipeline.services.shared_call_slots import LEASE_SECONDS, SharedCallSlots
from batch_pipeline.services.states.backlog import Backlog
from batch_pipeline.services.states.batch_states import BatchStates
from batch_pipeline.services.states.upload_states import UploadStates
from batch_pipeline.settings import Settings
from batch_pipeline.storage import Storage


class Pipeline:
    """Database, storage, progress, state machine and analyzer; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.storage = Storage(settings.storage_location)
        self.database = open_database(settings)
        self.ownership = FileOwnership(self.database, self.storage, settings)
        self.storage.writer = self.ownership.identity
        self.publisher = ProgressPublisher(self.database, settings.redis_url)
        self.states = UploadStates(self.publisher, lease_seconds=settings.lease_seconds)
        self.batches = BatchStates(self.publisher)
        self.backlog = Backlog(self.publisher, lease_seconds=settings.lease_seconds)
        self.pauses = Pauses(self.database)
        self.call_slots = SharedCallSlots(
            self.database.url, lease_seconds=min(settings.lease_seconds, LEASE_SECONDS)
        )

    @cached_property
    def spaces(self) -> Spaces:
        """The embedding spaces: the one for new vectors, and the models of older ones."""
        return Spaces(
            self.database, self.settings, lambda: self.analyzer.embedding, self.call_slots.of
        )

    @cached_property
    def suspects(self) -> CallSlots:
        """The call slot of uploads that may crash a model server: one call over all processes."""
        return self.call_slots.of("suspect", 1)

    @cached_property
    def analyzer(self) -> Analyzer:
        """The models that describe and embed; built when first needed."""
        from batch_pipeline.model_servers.factory import build_analyzer  # noqa: PLC0415

        return build_analyzer(self.settings, self.call_slots.of)

    def why_paused(self, batch_id: uuid.UUID | None = None) -> WorkPausedError | None:
        """Return why a pause keeps a batch from being processed now; None: no pause does.

        Without a batch: why a pause keeps everything from being processed.
        """
        return why_paused(self.database, self.settings, batch_id)

    def analyzer_outage(self) -> ServiceDownError | None:
        """Return why no upload can be processed now, or None; a pause is not an outage."""
        embedding = self.analyzer.embedding
        with Account(self.database) as account:
            spent = account.of("embedding", embedding.name)
            problems = self.analyzer.outages(spent, self.pauses.of(None))
        down = [found for found in problems if found.kind != WORK_PAUSED]
        if not down:
            return None
        # Both models often run on one server, whose outage is reported once.
        reasons = dict.fromkeys(f"{found.detail}. {found.hint}".rstrip(". ") for found in problems)
        return ServiceDownError(down[0].kind, "; ".join(reasons))

    def close(self) -> None:
        """Return the call slots and close the connections to the database."""
        self.call_slots.close()
        self.database.close()


_shared: dict[Settings, Pipeline] = {}
_lock = threading.Lock()


def shared_pipeline(settings: Settings) -> Pipeline:
    """Return the pipeline of this process, opened once; after a failure the next call retries."""
    with _lock:
        if settings not in _shared:
            _shared[settings] = Pipeline(settings)
        return _shared[settings]
