"""Describing and embedding through a model server: what is the same for every kind of server.

How a call is made lives in `http_calls`, to which server in `server_group`; the two dialects in
`ollama` and `openai_compatible`; the wording of questions in `prompts`; the reading of answers in
`answers`.
"""

import logging
from collections.abc import Sequence
from functools import partial

from batch_pipeline.errors import TransientError, UploadError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers import prompts
from batch_pipeline.model_servers.answers import checked_vector, usable_text
from batch_pipeline.model_servers.base import (
    CallSlots,
    CancelledCheck,
    HealthCheck,
    never_cancelled,
)
from batch_pipeline.model_servers.model_server import ChatAnswer, ChatRequest, ModelServer
from batch_pipeline.model_servers.server_group import ServerGroup

_log = logging.getLogger(__name__)

_PICTURE_TOKENS = 512
_SYNTHESIS_TOKENS = 2048
_TEMPERATURE = 0.3
_TEMPERATURE_STEP = 0.2
_HIGHEST_TEMPERATURE = 0.9
#: A video takes a call per frame: one crash in ten calls would fail most videos if it were
#: charged to the upload. Such a call is therefore made again on the spot.
_CALL_TRIES_OF_A_VIDEO = 3
_WORTH_ASKING_AGAIN = {"model_server_error", "model_output_invalid"}
#: Seeds of the tries within one attempt of an upload never meet those of the next attempt.
_SEEDS_PER_ATTEMPT = 100
#: Texts of one embedding call; servers commonly take far more, but answer for all or none.
_TEXTS_PER_CALL = 32
_SHORTEST_CUT_CHARACTERS = 200
#: How servers say that a text exceeds the context; they have no common code for it.
_TOO_LONG = ("context length", "context size", "too large to process", "too long")


class RemoteVision:
    """Describes pictures through model servers.

    Args:
        servers: who is asked, any of them.
        model: name of the vision model, with its tag.
        slots: cap on the calls in flight.
    """

    def __init__(self, servers: Sequence[ModelServer], model: str, slots: CallSlots) -> None:
        self.name = model
        self._servers = ServerGroup(servers, model, slots)

    def describe(
        self,
        facts: MediaFacts,
        frames: Sequence[Frame],
        *,
        attempt: int = 1,
        cancelled: CancelledCheck = never_cancelled,
    ) -> str:
        """Describe a picture in one call; a video frame by frame, then as a whole.

        Models of this family mis-handle several images in one call, hence a call per frame. See
        `batch_pipeline.model_servers.base.VisionModel` for arguments and errors.
        """
        if facts.file_type == "image":
            return self._ask(prompts.IMAGE, frames[0], attempt, cancelled, tries=1)
        total = len(frames)
        descriptions = [
            self._ask(
                prompts.frame_prompt(number, total, frame),
                frame,
                attempt,
                cancelled,
                tries=_CALL_TRIES_OF_A_VIDEO,
            )
            for number, frame in enumerate(frames, start=1)
        ]
        if total == 1:
            return descriptions[0]
        return self._ask(
            prompts.synthesis_prompt(frames, descriptions),
            None,
            attempt,
            cancelled,
            tries=_CALL_TRIES_OF_A_VIDEO,
        )

    def check(self) -> list[HealthCheck]:
        """Ask whether each server answers and has the model; never raises."""
        return self._servers.check("vision", lambda server: server.check_vision(self.name))

    def _ask(
        self,
        prompt: str,
        frame: Frame | None,
        attempt: int,
        cancelled: CancelledCheck,
        *,
        tries: int,
    ) -> str:
        for number in range(1, tries + 1):
            request = ChatRequest(
                prompt=prompt,
                jpeg=frame.jpeg if frame else None,
                max_tokens=_PICTURE_TOKENS if frame else _SYNTHESIS_TOKENS,
                temperature=_temperature(attempt + number - 1),
                seed=_SEEDS_PER_ATTEMPT * (attempt - 1) + number,
            )
            try:
                answer = self._servers.run(partial(self._chat, request), cancelled)
                return usable_text(answer.text, cut_by_length=answer.cut_by_length)
            except TransientError as error:
                if number == tries or error.kind not in _WORTH_ASKING_AGAIN:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _chat(self, request: ChatRequest, server: ModelServer) -> ChatAnswer:
        return await server.chat(self.name, request)


class RemoteEmbedding:
    """Embeds text through model servers.

    Args:
        servers: who is asked, any of them.
        model: name of the embedding model, with its tag.
        dimensions: length that every vector must have.
        slots: cap on the calls in flight.
    """

    def __init__(
        self, servers: Sequence[ModelServer], model: str, dimensions: int, slots: CallSlots
    ) -> None:
        self.name = model
        self.dimensions = dimensions
        self._servers = ServerGroup(servers, model, slots)

    def embed(
        self, texts: Sequence[str], *, cancelled: CancelledCheck = never_cancelled
    ) -> list[list[float]]:
        """Embed each text, many to a call; every vector is checked before it is returned.

        A text longer than the model's context is shortened by halves until the server takes it,
        with a warning in the log. See `batch_pipeline.model_servers.base.EmbeddingModel` for
        arguments and errors.

        Raises:
            TransientError: also ``embedding_empty``, ``embedding_not_finite``, ``embedding_zero``.
            ServiceDownError: also ``embedding_wrong_length``: a model of another length than the
                column would fail every upload alike, so it stops the work as an outage does.
        """
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            vectors += self._vectors(texts[start : start + _TEXTS_PER_CALL], cancelled)
        return vectors

    def check(self) -> list[HealthCheck]:
        """Ask whether each server answers, has the model, and its vectors fit; never raises."""
        return self._servers.check(
            "embedding", lambda server: server.check_embedding(self.name, self.dimensions)
        )

    def _vectors(self, texts: Sequence[str], cancelled: CancelledCheck) -> list[list[float]]:
        try:
            return self._servers.run(partial(self._embedded, texts), cancelled)
        except UploadError as error:
            if not any(words in str(error).lower() for words in _TOO_LONG):
                raise
            if len(texts) > 1:
                return [vector for text in texts for vector in self._vectors([text], cancelled)]
            shorter = texts[0][: len(texts[0]) // 2]
            if len(shorter) < _SHORTEST_CUT_CHARACTERS:
                raise
            _log.warning(
                "text of %d characters is too long for %s, only its first %d are embedded: %s",
                len(texts[0]),
                self.name,
                len(shorter),
                error,
            )
            return self._vectors([shorter], cancelled)

    async def _embedded(self, texts: Sequence[str], server: ModelServer) -> list[list[float]]:
        vectors = await server.embed(self.name, texts)
        if not vectors:
            raise TransientError("embedding_empty", f"{self.name} returned no vector")
        if len(vectors) != len(texts):
            raise TransientError(
                "model_output_invalid",
                f"{self.name} returned {len(vectors)} vectors for {len(texts)} texts",
            )
        return [checked_vector(vector, self.name, self.dimensions) for vector in vectors]


def _temperature(number: int) -> float:
    return min(_TEMPERATURE + _TEMPERATURE_STEP * (number - 1), _HIGHEST_TEMPERATURE)
