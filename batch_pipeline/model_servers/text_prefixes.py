"""Prefixes that embedding models need in front of a text: one for questions, one for documents.

Models were trained with these words, exactly as in their model cards. Without them, questions match
descriptions less well.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TextPrefixes:
    """Prefixes of texts; empty: nothing."""

    question: str = ""
    document: str = ""


_TASK = "Given a web search query, retrieve relevant passages that answer the query"
_PASSAGES = "Represent this sentence for searching relevant passages: "
#: Prefixes by a part of the model's name, in lower case; the first match counts. Sources: the model
#: cards of nomic-ai/nomic-embed-text-v1.5, intfloat/multilingual-e5-large-instruct and
#: intfloat/e5-mistral-7b-instruct, intfloat/multilingual-e5-large, google/embeddinggemma-300m,
#: Qwen/Qwen3-Embedding-0.6B, mixedbread-ai/mxbai-embed-large-v1, Snowflake/snowflake-arctic-embed-l
#: and Snowflake/snowflake-arctic-embed-l-v2.0.
_FAMILIES = (
    (r"nomic-embed-text", TextPrefixes("search_query: ", "search_document: ")),
    (r"\be5-.*instruct", TextPrefixes(f"Instruct: {_TASK}\nQuery: ")),
    (r"\be5\b", TextPrefixes("query: ", "passage: ")),
    (
        r"embedding-?gemma",
        TextPrefixes("task: search result | query: ", "title: none | text: "),
    ),
    # No space after the colon; documents have no prefix.
    (r"qwen3-embedding", TextPrefixes(f"Instruct: {_TASK}\nQuery:")),
    (r"snowflake-arctic-embed(2|.*-v2)", TextPrefixes("query: ")),
    (r"snowflake-arctic-embed|mxbai-embed-large", TextPrefixes(_PASSAGES)),
)
#: In a setting: send nothing, whatever the model card says.
NONE = "none"


def prefixes_for(model: str, question: str = "", document: str = "") -> TextPrefixes:
    r"""Return the prefixes for a model.

    Args:
        model: its name on the server: ``nomic-embed-text:v1.5``, ``intfloat/e5-large-v2``.
        question: replaces the prefix of the table. Empty: as in the table; `NONE`: no prefix. The
            two characters ``\n`` are a line break.
        document: the same for documents.
    """
    named = model.lower()
    known = next((found for part, found in _FAMILIES if re.search(part, named)), TextPrefixes())
    return TextPrefixes(_set(question, known.question), _set(document, known.document))


def _set(given: str, known: str) -> str:
    if given.strip().lower() == NONE:
        return ""
    return given.replace("\\n", "\n") if given else known
