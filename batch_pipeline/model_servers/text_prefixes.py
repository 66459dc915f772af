"""What embedding models want in front of a text: one thing for questions, one for documents.

Such models were trained with these words, exactly as they stand on their model cards. Without them
questions and descriptions lie further apart than they need to.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TextPrefixes:
    """Put in front of each text; empty: nothing."""

    question: str = ""
    document: str = ""


_TASK = "Given a web search query, retrieve relevant passages that answer the query"
#: By what the name of a model contains, small letters; the first that fits. Sources: the model
#: cards of nomic-ai/nomic-embed-text-v1.5, intfloat/multilingual-e5-large-instruct and
#: intfloat/e5-mistral-7b-instruct, intfloat/multilingual-e5-large, google/embeddinggemma-300m,
#: Qwen/Qwen3-Embedding-0.6B.
_FAMILIES = (
    (r"nomic-embed-text", TextPrefixes("search_query: ", "search_document: ")),
    (r"\be5-.*instruct", TextPrefixes(f"Instruct: {_TASK}\nQuery: ")),
    (r"\be5\b", TextPrefixes("query: ", "passage: ")),
    (
        r"embedding-?gemma",
        TextPrefixes("task: search result | query: ", "title: none | text: "),
    ),
    # Without a space behind the colon; documents go as they are.
    (r"qwen3-embedding", TextPrefixes(f"Instruct: {_TASK}\nQuery:")),
)
#: In a setting: send nothing, whatever the model card says.
NONE = "none"


def prefixes_for(model: str, question: str = "", document: str = "") -> TextPrefixes:
    r"""Find what a model wants.

    Args:
        model: its name, as a server knows it: ``nomic-embed-text:v1.5``, ``intfloat/e5-large-v2``.
        question: instead of what the table says; empty: as the table says, `NONE`: nothing. The two
            characters ``\n`` are a line break.
        document: the same for documents.
    """
    named = model.lower()
    known = next((found for part, found in _FAMILIES if re.search(part, named)), TextPrefixes())
    return TextPrefixes(_set(question, known.question), _set(document, known.document))


def _set(given: str, known: str) -> str:
    if given.strip().lower() == NONE:
        return ""
    return given.replace("\\n", "\n") if given else known
