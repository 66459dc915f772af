"""What a process has learnt about a model on a server: what it refuses, and whether it thinks.

Servers and models of one protocol accept different parameters, and none of them says so beforehand.
The first call finds out. A refused parameter is left out of later calls, and the same call is made
again at once without it, so no upload fails. Everything here runs on the event loop of the calls.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batch_pipeline.errors import ServiceDownError, TransientError
from batch_pipeline.model_servers.answers import clean, is_prose, shows_thought
from batch_pipeline.model_servers.http_errors import server_reason

#: Factor on the usual limit of tokens: room for a thought that cannot be switched off, and for the
#: answer after it.
BUDGET_OF_A_THINKER = 8

_REFUSAL = re.compile(
    r"unsupported|not supported|not support|unrecognized|unrecognised|unknown|unexpected"
    r"|extra_forbidden|extra inputs|not permitted|not allowed|deprecated"
    r"|invalid (parameter|value)|input should be|must be one of|unavailable|cannot unmarshal"
)
_IGNORED = "it is ignored"
#: Parameters that contain a JSON schema, and messages of servers that cannot hold a model to it,
#: such as "Failed to initialize samplers".
_SCHEMAS = ("response_format", "format")
_NO_GRAMMAR = re.compile(r"\b(grammar|json[ _]?schema|samplers?)\b")
#: In messages of vLLM and SGLang if a limit of tokens and a picture together exceed the context.
_BEYOND_CONTEXT = "maximum context length"
#: Parameters whose names are also ordinary words; in a refusal they are in quotes.
_COMMON_WORDS = {"format"}


@dataclass(frozen=True)
class Stage:
    """One way to keep a model from thinking; stages are tried in their order."""

    parameters: Mapping[str, Any]
    budget: int = 1
    """The usual limit of tokens is multiplied by this."""


class Learnt:
    """Which parameters are sent to one model: all except those that it has refused.

    Args:
        who: model and server, for messages.
        variable: name of the setting with options that are also sent.
        options: those options; they replace parameters of ours, and are never left out.
        stages: ways to keep the model from thinking, in the order in which they are tried.
    """

    def __init__(
        self,
        who: str,
        variable: str,
        options: Mapping[str, Any],
        stages: Sequence[Stage] = (Stage({}),),
    ) -> None:
        self._who = who
        self._variable = variable
        self._options = options
        self._stages = stages
        self._number = 0
        self._refused: dict[str, str] = {}
        self._answers = 0
        """Number of answers in the current stage."""
        self._thinks = False
        self._follows_form = False

    @property
    def stage(self) -> Stage:
        """Return the current way to keep the model from thinking."""
        return self._stages[self._number]

    def sent(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the complete parameters of a call, without those that the model refuses."""
        taken = {
            name: value
            for name, value in {**parameters, **self.stage.parameters}.items()
            if self._key(name, value) not in self._refused
        }
        return {
            name: value for name, value in {**taken, **self._options}.items() if value is not None
        }

    def takes(self, name: str) -> bool:
        """Return whether our parameter is sent: neither refused nor set by a person."""
        return name not in self._options and name not in self._refused

    def follows_form(self, name: str, text: str) -> bool:
        """Return whether an answer to a call with a schema, the parameter `name`, has its form.

        If no answer has had the form, the server ignores the schema. Otherwise an answer in prose
        is a refusal, or an exception: some servers only ask their model to follow the schema.
        Nothing is learnt from an empty answer.
        """
        if is_prose(text):
            if not self._follows_form:
                self._refused[name] = _IGNORED
            return False
        if clean(text):
            self._follows_form = True
            if self._refused.get(name) == _IGNORED:  # learnt from another call at the same time
                del self._refused[name]
        return True

    def refuses(self, name: str) -> bool:
        """Return whether a parameter was refused, whatever its value."""
        return name in self._refused

    def learns_from_refusal(self, sent: Mapping[str, Any], status: int, body: str) -> bool:
        """Learn which parameter a server refuses; return true if a retry without it may help.

        Raises:
            ServiceDownError: ``model_refused_options``: a person has set this parameter.
        """
        name = _refused_parameter(sent, status, body)
        if name is None:
            return False
        reason = server_reason(body)
        if name in self._options:
            raise ServiceDownError(
                "model_refused_options",
                f"{self._who} refuses {name!r}, which {self._variable} sets: {reason}",
            )
        # Another call may have learnt it since this one began; the retry leaves it out anyway.
        self._refused[self._key(name, sent[name])] = reason
        return True

    def accepts(
        self, stage: Stage, text: str, max_tokens: int, *, cut: bool, has_thought: bool
    ) -> bool:
        """Return whether an answer counts; if not, the same call is made again at once.

        Args:
            stage: the stage of the call; other calls may have moved on to the next.
            text: the answer.
            max_tokens: limit of tokens of the call.
            cut: the limit has cut the answer.
            has_thought: the server says that the model thought; the text may show it, too.

        Raises:
            ServiceDownError: ``model_thinks``: no stage keeps the model from thinking, and its
                answers contain only thoughts.
            TransientError: ``model_output_invalid``: the same, but other calls were answered well.
        """
        if has_thought or shows_thought(text, cut_by_length=cut):
            eaten = cut and not clean(text)
            if self._learns_from_thought(stage, max_tokens, eaten=eaten):
                return False
        if stage is self.stage:
            self._answers += 1
        return True

    def _learns_from_thought(self, stage: Stage, max_tokens: int, *, eaten: bool) -> bool:
        """Learn that the model thinks at this stage; return true if a retry may help.

        `eaten`: the thought left no room for an answer.
        """
        self._thinks = True
        if stage is not self.stage:
            return eaten
        for number in range(self._number + 1, len(self._stages)):
            following = self._stages[number]
            if following.budget > stage.budget and not eaten:
                break
            if following.budget > stage.budget or self._adds(following):
                self._number, self._answers = number, 0
                return eaten
        if not eaten:
            return False
        found = f"{self._who} thinks, and used up all {max_tokens} tokens before it began to answer"
        if self._answers:
            raise TransientError("model_output_invalid", found)
        raise ServiceDownError(
            "model_thinks",
            f"{found}; no common parameter switches thinking off. Choose a model that does "
            f"not think, or set {self._variable} to a parameter that switches it off, such as "
            '{"reasoning_effort": "low"}',
        )

    def summary(self) -> str:
        """Return what was learnt, as text for people; empty: nothing."""
        found = []
        if self._refused:
            names = ", ".join(dict.fromkeys(key.partition("=")[0] for key in self._refused))
            found.append(f"does not take {names}")
        if self._thinks:
            used = {k: v for k, v in self.sent({}).items() if k in self.stage.parameters}
            switch = f"asked not to by {json.dumps(used)}" if used else "no switch is known"
            found.append(f"thinks ({switch})")
        if self.stage.budget > 1:
            found.append(f"gets {self.stage.budget} times the tokens")
        return "; ".join(found)

    def _adds(self, stage: Stage) -> bool:
        """Return whether a stage sends anything that was not sent yet."""
        tried = self._stages[: self._number + 1]
        return any(
            self._key(name, value) not in self._refused
            and not any(past.parameters.get(name) == value for past in tried)
            for name, value in stage.parameters.items()
        )

    def _key(self, name: str, value: object) -> str:
        """Return the key of a refusal: for a switch its value counts, else only its name."""
        is_switch = any(name in stage.parameters for stage in self._stages)
        return f"{name}={json.dumps(value)}" if is_switch else name


def _refused_parameter(sent: Mapping[str, Any], status: int, body: str) -> str | None:
    if status not in {400, 422}:
        return None
    return _named_parameter(sent, body) or _schema_without_grammar(sent, body)


def _named_parameter(sent: Mapping[str, Any], body: str) -> str | None:
    lowered = body.lower()
    if not _REFUSAL.search(lowered):
        return None
    try:
        error = json.loads(body).get("error")
    except (ValueError, AttributeError):
        error = None
    if isinstance(error, dict) and error.get("param") in sent:
        return str(error["param"])
    places = {}
    for name in sent:
        # "does not support thinking" means `think`; "unsupported image format" means no parameter.
        before = "['\"`.]" if name in _COMMON_WORDS else r"(?<!\w)"
        if found := re.search(rf"{before}{re.escape(name.lower())}(?:ing)?(?!\w)", lowered):
            places[name] = found.start()
    return min(places, key=places.__getitem__) if places else None


def _schema_without_grammar(sent: Mapping[str, Any], body: str) -> str | None:
    """Return the schema's parameter if the server cannot use it: llama.cpp does not name it."""
    is_about_it = _NO_GRAMMAR.search(body.lower())
    return next((name for name in _SCHEMAS if name in sent), None) if is_about_it else None


def is_beyond_context(status: int, body: str) -> bool:
    """Return whether a call needs more room than the context of a server has.

    Without a limit of tokens, the server writes until the context is full. Nothing is learnt from
    this: other pictures and texts are smaller.
    """
    return status in {400, 422} and _BEYOND_CONTEXT in body.lower()
