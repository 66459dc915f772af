"""Turns a failed call to a model server into an error that says what to do next.

There are three classes of errors: this request is wrong (`PermanentError`), a retry may help
(`TransientError`), and every upload would fail in the same way (`ServiceDownError`). A refusal that
may concern one upload or all of them counts as an outage here, a 5xx as an error of one call. In
both cases `server_group` then asks the server a question with a known answer.
"""

import json
import re
from collections.abc import Iterator, Mapping

from batch_pipeline.errors import (
    KindedError,
    PermanentError,
    ServiceDownError,
    TransientError,
)
from batch_pipeline.model_servers.rate_limits import asked_wait
from batch_pipeline.visible_text import visible

#: Outages that a single picture may cause, and errors of one call that may concern all calls. A
#: question about a known picture shows which it is.
DOUBTFUL = frozenset(
    {
        "model_server_refused",
        "model_missing",
        "model_unsuitable",
        "model_refuses_all",
        "model_server_error",
        "model_server_busy",
    }
)

_LONGEST_REASON = 2000
#: Messages of services that refuse this content.
_MODERATION = re.compile(
    r"moderation|content[ _-]?(policy|filter|management)|safety|flagged|nsfw|inappropriate"
    r"|guardrail|prohibited[ _-]content|violat|harmful|responsible ?ai"
)
#: Messages of services that refuse this customer, whatever the content.
_ABOUT_CUSTOMER = re.compile(r"\b(account|api[ _-]?key|organi[sz]ation)\b")
#: Messages of services for an account without credit; waiting does not help.
_UNPAID = re.compile(
    r"insufficient[ _-](quota|credit|balance|fund)|billing[ _-](hard[ _-]limit|not[ _-]active)"
    r"|credit balance|out of credit|payment required"
)
#: Messages of servers whose model cannot do what is asked: vLLM says "is not a multimodal model" or
#: "At most 0 image(s)", llama.cpp names the missing option, OpenAI, DeepSeek and Mistral say that
#: only other models take pictures.
_UNSUITABLE = re.compile(
    r"not support|unsupported|mmproj|not an? (multi-?modal|embedding) model|at most 0 image"
    r"|image_url is only supported|unknown variant `image_url`|cannot be used with this model"
)
#: A page of a proxy. Its style sheet and its pictures must not look like words about a picture.
_PAGE = re.compile(r"\s*<(?:!doctype html|html)\b.*?<title[^>]*>\s*([^<]+)", re.I | re.S)
_ABOUT_CONTENT = {400, 403, 406, 415, 422, 451}
#: Proxies report these about the server behind them: 504 of nginx and load balancers, the others of
#: Cloudflare (refused, no answer in time, no route, and no tunnel to it).
_OF_A_PROXY = {502, 504, 521, 522, 523, 530}


class Unreachable(Exception):  # noqa: N818 - a finding that never leaves this package
    """No connection could be made."""


class Disconnected(Exception):  # noqa: N818
    """The connection ended before the answer was complete, perhaps behind a proxy."""


class Misread(Exception):  # noqa: N818
    """The answer has values of other types than the protocol says."""


class Busy(Exception):  # noqa: N818
    """The server is there and asks to be called later.

    Args:
        reason: its message.
        wait_seconds: the pause that it asks for, if it names one.
        rate_limited: it limits the rate of calls (429), so all callers must slow down.
    """

    def __init__(self, reason: str, wait_seconds: float | None, *, rate_limited: bool) -> None:
        # The reason is stored in the database, which refuses half an emoji. That error would end
        # the thread that shares slots and pauses with other processes, and with it all later calls.
        super().__init__(visible(reason))
        self.wait_seconds = wait_seconds
        self.rate_limited = rate_limited

    @property
    def may_be_of_a_proxy(self) -> bool:
        """Whether proxies also answer like this for a server that is down: 503 without a time."""
        return not self.rate_limited and not self.wait_seconds


def error_for_status(  # noqa: PLR0911, PLR0912 - a table of cases
    server: str, status: int, body: str, headers: Mapping[str, str]
) -> Exception:
    """Return the error for an HTTP status.

    Wrong settings stop all processing with `ServiceDownError`, like an outage, because every upload
    would fail: ``model_missing``, ``model_server_refused`` (key, path), ``model_address_wrong``
    (405), ``model_unsuitable`` (the model cannot do what is asked), ``model_refuses_all`` (a 400 or
    422, even if it names the picture: a server may refuse all of them) and ``model_quota_used_up``.
    """
    page = _PAGE.match(body)
    body = page[1] if page else body
    reason = server_reason(body)
    message = f"model server {server} answered {status}: {reason}"
    # Error codes are in the body, next to the reason that is shown.
    said = f"{reason} {body[:_LONGEST_REASON]}".lower()
    if status == 402 or (status in {400, 403, 429} and _UNPAID.search(said)):
        return ServiceDownError(
            "model_quota_used_up",
            f"{message.rstrip('.')}. Check the plan and the billing of the service",
        )
    if status in _ABOUT_CONTENT and _MODERATION.search(said) and not _ABOUT_CUSTOMER.search(said):
        return PermanentError("model_refused_input", message)
    if status in {401, 403, 407}:
        return ServiceDownError("model_server_refused", message)
    if status == 404:
        return ServiceDownError("model_missing", message)
    if status in _OF_A_PROXY:
        return Disconnected(message)
    if status in {429, 503}:
        return Busy(message, asked_wait(headers), rate_limited=status == 429)
    if status == 408:
        return TransientError("model_timeout", message)
    if "unsupported value: nan" in said:
        # Ollama cannot write NaN as JSON and answers 500.
        return TransientError("embedding_not_finite", message)
    if _UNSUITABLE.search(said):
        return ServiceDownError("model_unsuitable", message)
    if status >= 500:
        return TransientError("model_server_error", message)
    if status in {400, 422}:
        return ServiceDownError("model_refuses_all", message)
    if status in {406, 413, 415, 451}:
        return PermanentError("model_refused_input", message)
    if status == 405:
        return ServiceDownError(
            "model_address_wrong",
            f"{message.rstrip('.')}. The path of the address takes no such calls: check it",
        )
    return ServiceDownError("model_server_refused", message)


def about_this_call(error: KindedError) -> KindedError:
    """Return the error of one call if the server answers others."""
    if not isinstance(error, ServiceDownError):
        return error
    said = str(error).rstrip(".")
    message = f"{said}; the same server answers other calls, so it refuses only this one"
    if error.kind in {"model_unsuitable", "model_refuses_all"}:
        return PermanentError("model_refused_input", message)
    return TransientError("model_refused_call", message)


def about_all_calls(error: KindedError) -> ServiceDownError:
    """Return the outage that a failed call shows, if the server does not answer others either.

    It may be a crash that this call has caused, except if the server is only busy.
    """
    if isinstance(error, ServiceDownError):
        return error
    said = str(error).rstrip(".")
    crash = TransientError(
        "model_server_crash",
        f"{said}; each time after this call, the server did not answer a known question either",
    )
    return ServiceDownError(
        "model_fails_all",
        f"{said}; it does not answer a known question either",
        if_alone=None if error.kind == "model_server_busy" else crash,
    )


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, even those that client libraries hide with `from None`."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        inner = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else None
        seen = seen.__cause__ or seen.__context__ or inner


def root_reason(error: BaseException) -> str:
    """Return the operating system's message, which says more than those of the layers above."""
    said = [cause for cause in chain(error) if str(cause)]
    system = [cause for cause in said if isinstance(cause, OSError) and cause.errno is not None]
    return str((system or said or [repr(error)])[-1])


def is_timeout(error: Exception) -> bool:
    """Return whether the server was silent; it may still be there."""
    return isinstance(error, TransientError) and error.kind == "model_timeout"


def server_reason(body: str) -> str:
    """Return the message in the body of an error, in any format, up to 2,000 characters."""
    try:
        said = json.loads(body)
    except ValueError:
        return body.strip()[:_LONGEST_REASON] or "no reason given"
    while isinstance(said, dict):
        inner = next((said[key] for key in ("error", "message", "detail") if said.get(key)), None)
        if inner is None:
            break
        said = inner
    return (said if isinstance(said, str) else json.dumps(said))[:_LONGEST_REASON]
