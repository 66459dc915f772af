"""A short text of what a result depends on besides its file: equal texts mean equal results.

For example ``qwen3-vl:8b-instruct@5ced39dfa4ba options:1f0a3c… prompts:77d0e9…``. The text changes
with the prompts, the options, and the model behind a name (its digest, if the server reports one).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

_DIGEST, _PART = 12, 8


def fingerprint(model: str, digests: Iterable[str], **parts: Mapping[str, Any]) -> str:
    """Put a fingerprint together.

    Args:
        model: its name.
        digests: of the model, as its servers report them; they should be equal.
        parts: everything else that a result depends on, by name; must be serializable as JSON.
    """
    told = "+".join(sorted({digest.removeprefix("sha256:")[:_DIGEST] for digest in digests} - {""}))
    named = [f"{name}:{_short(value)}" for name, value in sorted(parts.items())]
    return " ".join([f"{model}@{told}" if told else model, *named])


def _short(value: Mapping[str, Any]) -> str:
    written = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(written.encode()).hexdigest()[:_PART]
