"""Describes and embeds through a model server: the part that is the same for all kinds of servers.

`http_calls` makes the calls, `server_group` chooses the server, `ollama` and `openai_compatible`
are the two dialects, `prompts` contains the questions, and `answers` cleans the answers.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from batch_pipeline.errors import PermanentError, ServiceDownError, TransientError, UploadError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.media.pictures import VISION_SIDE
from batch_pipeline.model_servers.answers import checked_vector, usable_text
from batch_pipeline.model_servers.base import (
    Caller,
    CallSlots,
    Description,
    HealthCheck,
    PausedCheck,
    Spent,
    Usage,
    never_paused,
    not_counted,
    told_here,
)
from batch_pipeline.model_servers.fingerprints import fingerprint
from batch_pipeline.model_servers.http_transport import reading_answer
from batch_pipeline.model_servers.model_server import (
    AnswerForm,
    ChatAnswer,
    ChatRequest,
    EmbedAnswer,
    ModelServer,
)
from batch_pipeline.model_servers.picture_size import PictureSize
from batch_pipeline.model_servers.prompts import COLOUR, Prompts
from batch_pipeline.model_servers.server_group import ServerGroup
from batch_pipeline.model_servers.structured import SCHEMA, description_in
from batch_pipeline.model_servers.text_prefixes import TextPrefixes

_log = logging.getLogger(__name__)

#: Limits of answers in plain text, and in fields. The longest visible text that is stored, 4,000
#: characters, has about 1,300 tokens in Latin letters (three characters per token); tags and JSON
#: have up to 200. The description of a video is far below its limit, so it needs less in addition.
_PICTURE_TOKENS, _PICTURE_TOKENS_IN_FIELDS = 512, 2048
_SYNTHESIS_TOKENS, _SYNTHESIS_TOKENS_IN_FIELDS = 2048, 2560
_TEMPERATURE = 0.3
_TEMPERATURE_STEP = 0.2
_HIGHEST_TEMPERATURE = 0.9
#: A video needs a call per frame. If one call in ten crashed and each crash failed the upload, most
#: videos would fail. So such a call is retried at once.
_CALL_TRIES_OF_A_VIDEO = 3
_WORTH_ASKING_AGAIN = {"model_server_error", "model_output_invalid"}
#: Seeds per attempt of an upload, so that no two attempts use the same seed.
_SEEDS_PER_ATTEMPT = 100
#: Texts per embedding call. Servers usually accept far more, but one bad text fails all of them.
_TEXTS_PER_CALL = 32
#: Two texts about the same thing, and one about something else.
_KNOWN_TEXTS = (
    "A brown dog runs along the beach.",
    "On the beach, a brown dog is playing in the sand.",
    "Quarterly invoice: taxes and fees due in March.",
)
_SHORTEST_CUT_CHARACTERS = 200
#: Messages of servers for a text that exceeds the context; there is no common error code.
_TOO_LONG = ("context length", "context size", "too large to process")
#: The same if the server refused the input. In other errors "too long" is about time.
_REFUSED_AS_TOO_LONG = (*_TOO_LONG, "too long", "token")


class RemoteVision:
    """Describes pictures through model servers.

    Args:
        servers: the servers; a call may go to any of them.
        model: name of the vision model, with its tag.
        slots: cap on the calls in flight.
        size: size of pictures for the model.
        prompts: the prompts.
        options: other settings that its answers depend on, for its fingerprint.
    """

    def __init__(
        self,
        servers: Sequence[ModelServer],
        model: str,
        slots: CallSlots,
        *,
        size: PictureSize = PictureSize(VISION_SIDE),
        prompts: Prompts = Prompts(),
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.name = model
        self._options = dict(options)
        self._size = size
        self._prompts = prompts
        self._servers = ServerGroup(servers, model, slots, self._known_question)

    def fingerprint(self) -> str:
        """Return what a description depends on besides its file; asks the servers now and then."""
        asked = asdict(self._prompts) | {"fields": self._prompts.fields}
        options = self._options | asdict(self._size)
        return fingerprint(self.name, self._servers.digests(), prompts=asked, options=options)

    def describe(
        self,
        facts: MediaFacts,
        frames: Sequence[Frame],
        *,
        attempt: int = 1,
        caller: Caller = Caller(),
    ) -> Description:
        """Describe a picture in one call; a video frame by frame, then as a whole.

        Tags and visible text come with the last answer, if the server accepts a schema.

        Some vision models handle several images in one call badly, so each frame gets its own call.
        See `batch_pipeline.model_servers.base.VisionModel` for arguments and errors.
        """
        ask = partial(self._ask, attempt=attempt, caller=caller)
        if facts.file_type == "image":
            return ask(self._prompts.of_image(facts), frames[0], tries=1, whole=True)
        total = len(frames)
        descriptions = [
            ask(
                self._prompts.of_frame(facts, number, total, frame),
                frame,
                tries=_CALL_TRIES_OF_A_VIDEO,
                whole=total == 1,
            )
            for number, frame in enumerate(frames, start=1)
        ]
        if total == 1:
            return descriptions[0]
        prompt = self._prompts.of_video(facts, frames, [each.text for each in descriptions])
        return ask(prompt, None, tries=_CALL_TRIES_OF_A_VIDEO, whole=True)

    def check(
        self, *, paused: PausedCheck = never_paused, patient: bool = True
    ) -> list[HealthCheck]:
        """Check that each server answers and has the model; never raises."""
        return self._servers.check(
            "vision", lambda server: server.check_vision(self.name), paused, patient=patient
        )

    def try_out(self, caller: Caller = Caller()) -> list[HealthCheck]:
        """Ask each server for the colour of a red square; raises only `WorkCancelledError`."""
        return self._servers.try_out("vision", self._sees_red, caller)

    def _ask(
        self,
        prompt: str,
        frame: Frame | None,
        *,
        tries: int,
        whole: bool,
        attempt: int,
        caller: Caller,
    ) -> Description:
        jpeg = self._size.fitted(frame.jpeg) if frame else None
        for number in range(1, tries + 1):
            request = ChatRequest(
                prompt=prompt,
                jpeg=jpeg,
                max_tokens=_PICTURE_TOKENS if frame else _SYNTHESIS_TOKENS,
                temperature=_temperature(attempt + number - 1),
                seed=_SEEDS_PER_ATTEMPT * (attempt - 1) + number,
                form=self._form(of_picture=frame is not None) if whole else None,
            )
            try:
                call = partial(self._chat, request)
                return _read(self._servers.run(call, caller, tokens_of=_tokens))
            except TransientError as error:
                if number == tries or error.kind not in _WORTH_ASKING_AGAIN:
                    raise
        raise AssertionError("the last try returns or raises")

    def _form(self, *, of_picture: bool = True) -> AnswerForm:
        max_tokens = _PICTURE_TOKENS_IN_FIELDS if of_picture else _SYNTHESIS_TOKENS_IN_FIELDS
        return AnswerForm(SCHEMA, self._prompts.fields, max_tokens)

    async def _chat(self, request: ChatRequest, server: ModelServer, spent: Spent) -> ChatAnswer:
        return await server.chat(self.name, request, spent)

    async def _known_question(self, server: ModelServer, spent: Spent) -> ChatAnswer:
        # It asks for an answer of the same length, in the same fields, as the questions about other
        # pictures: a server may refuse these questions because of the length or the fields.
        request = ChatRequest(
            prompt=COLOUR,
            jpeg=self._size.fitted(red_square()),
            max_tokens=_PICTURE_TOKENS,
            temperature=0,
            seed=1,
            form=self._form(),
        )
        return await server.chat(self.name, request, spent)

    async def _sees_red(self, server: ModelServer) -> str:
        answer = await self._known_question(server, not_counted)
        said = _read(answer).text
        if "red" not in said.lower():
            raise ServiceDownError(
                "model_unsuitable",
                f"{self.name} does not see what is in a picture: asked for the colour of a red "
                f"square, it says {said[:200]!r}",
            )
        how = "in fields" if answer.in_form else "in plain text"
        return f"calls a red square red, {how} ({_told(answer.usage)})"


class RemoteEmbedding:
    """Embeds text through model servers.

    Args:
        servers: the servers; a call may go to any of them.
        model: name of the embedding model, with its tag.
        dimensions: length that every vector must have.
        slots: cap on the calls in flight.
        prefixes: prefixes of texts.
        options: other settings that its vectors depend on, for its fingerprint.
    """

    def __init__(
        self,
        servers: Sequence[ModelServer],
        model: str,
        dimensions: int,
        slots: CallSlots,
        *,
        prefixes: TextPrefixes = TextPrefixes(),
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.name = model
        self.prefixes = prefixes
        self._options = dict(options)
        self.dimensions = dimensions
        self._servers = ServerGroup(servers, model, slots, self._known_text)

    def fingerprint(self) -> str:
        """Return what a vector depends on besides its text; asks the servers now and then."""
        options = self._options | {"dimensions": self.dimensions}
        # Only if there are prefixes: older vectors, made without this part, are not stale.
        if self.prefixes.document:
            options["prefix"] = self.prefixes.document
        return fingerprint(self.name, self._servers.digests(), options=options)

    def embed(
        self,
        texts: Sequence[str],
        *,
        as_questions: bool = False,
        caller: Caller = Caller(),
    ) -> list[list[float]]:
        """Embed each text, many per call; every vector is checked before it is returned.

        A text longer than the model's context is cut in half until the server accepts it, with a
        warning in the log. See `batch_pipeline.model_servers.base.EmbeddingModel` for arguments and
        errors.

        Raises:
            TransientError: also ``embedding_empty``, ``embedding_not_finite``, ``embedding_zero``.
            ServiceDownError: also ``embedding_wrong_length``: the model's vectors do not fit the
                column, so every upload would fail. Processing stops, as in an outage.
        """
        vectors: list[list[float]] = []
        prefix = self.prefixes.question if as_questions else self.prefixes.document
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            some = texts[start : start + _TEXTS_PER_CALL]
            vectors += self._vectors(prefix, some, caller)
        return vectors

    def check(
        self,
        *,
        spent: Spent = not_counted,
        paused: PausedCheck = never_paused,
        patient: bool = True,
    ) -> list[HealthCheck]:
        """Check that each server answers, has the model, and its vectors fit; never raises."""
        with told_here(spent) as noted:
            return self._servers.check(
                "embedding",
                lambda server: server.check_embedding(self.name, self.dimensions, noted),
                paused,
                patient=patient,
            )

    def try_out(self, caller: Caller = Caller()) -> list[HealthCheck]:
        """Ask each server for vectors of three texts; two of them are about the same thing.

        Raises only `WorkCancelledError`.
        """
        return self._servers.try_out("embedding", self._tells_apart, caller)

    def _vectors(self, prefix: str, texts: Sequence[str], caller: Caller) -> list[list[float]]:
        try:
            call = partial(self._embedded, [prefix + text for text in texts])
            return self._servers.run(call, caller, tokens_of=_tokens).vectors
        except UploadError as error:
            if not _is_too_long(error):
                raise
            if len(texts) > 1:
                each = (self._vectors(prefix, [text], caller) for text in texts)
                return [vector for [vector] in each]
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
            return self._vectors(prefix, [shorter], caller)

    async def _embedded(
        self, texts: Sequence[str], server: ModelServer, spent: Spent
    ) -> EmbedAnswer:
        """Embed texts; vectors that cannot be stored are an error of the server."""
        answer = await server.embed(self.name, texts, self.dimensions, spent)
        if not answer.vectors:
            raise TransientError("embedding_empty", f"{self.name} returned no vector")
        if len(answer.vectors) != len(texts):
            raise TransientError(
                "model_output_invalid",
                f"{self.name} returned {len(answer.vectors)} vectors for {len(texts)} texts",
            )
        with reading_answer():
            checked = [checked_vector(one, self.name, self.dimensions) for one in answer.vectors]
        return EmbedAnswer(checked, answer.usage)

    async def _known_text(self, server: ModelServer, spent: Spent) -> EmbedAnswer:
        return await self._embedded(["check"], server, spent)

    async def _tells_apart(self, server: ModelServer) -> str:
        answer = await self._embedded(_KNOWN_TEXTS, server, not_counted)
        one, other, third = map(np.array, answer.vectors)
        near, far = _cosine(one, other), _cosine(one, third)
        if near <= far:
            raise ServiceDownError(
                "model_unsuitable",
                f"vectors of {self.name} do not tell texts apart: {_KNOWN_TEXTS[0]!r} is as near "
                f"to {_KNOWN_TEXTS[2]!r} ({far:.2f}) as to {_KNOWN_TEXTS[1]!r} ({near:.2f})",
            )
        return f"similar texts score {near:.2f}, others {far:.2f} ({_told(answer.usage)})"


def _is_too_long(error: UploadError) -> bool:
    words = _REFUSED_AS_TOO_LONG if isinstance(error, PermanentError) else _TOO_LONG
    return any(each in str(error).lower() for each in words)


def _read(answer: ChatAnswer) -> Description:
    if answer.in_form:
        text = usable_text(answer.text, cut_by_length=False)
        return description_in(text, cut_by_length=answer.cut_by_length)
    return Description(usable_text(answer.text, cut_by_length=answer.cut_by_length))


def _cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _tokens(answer: ChatAnswer | EmbedAnswer) -> float:
    return answer.usage.tokens_in + answer.usage.tokens_out


def _told(usage: Usage) -> str:
    tokens = f"{usage.tokens_in} tokens in, {usage.tokens_out} out, " if usage.tokens_in else ""
    return f"{tokens}{usage.seconds:.1f} s"


@cache
def red_square() -> bytes:
    """Return a picture whose content is known (JPEG)."""
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(written, "JPEG")
    return written.getvalue()


def _temperature(number: int) -> float:
    return min(_TEMPERATURE + _TEMPERATURE_STEP * (number - 1), _HIGHEST_TEMPERATURE)
