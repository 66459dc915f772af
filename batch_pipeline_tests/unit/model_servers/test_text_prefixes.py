import pytest

from batch_pipeline.model_servers.text_prefixes import TextPrefixes, prefixes_for

TASK = "Given a web search query, retrieve relevant passages that answer the query"
PASSAGES = "Represent this sentence for searching relevant passages: "


@pytest.mark.parametrize(
    ("model", "question", "document"),
    [
        ("nomic-embed-text:v1.5", "search_query: ", "search_document: "),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        ("jeffh/intfloat-multilingual-e5-small:f16", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", f"Instruct: {TASK}\nQuery: ", ""),
        ("intfloat/e5-mistral-7b-instruct", f"Instruct: {TASK}\nQuery: ", ""),
        ("embeddinggemma:300m", "task: search result | query: ", "title: none | text: "),
        ("google/embeddinggemma-300m", "task: search result | query: ", "title: none | text: "),
        ("qwen3-embedding:0.6b", f"Instruct: {TASK}\nQuery:", ""),
        ("Qwen/Qwen3-Embedding-4B", f"Instruct: {TASK}\nQuery:", ""),
        ("text-embedding-qwen3-embedding-0.6b", f"Instruct: {TASK}\nQuery:", ""),
        ("mxbai-embed-large:335m", PASSAGES, ""),
        ("snowflake-arctic-embed:335m", PASSAGES, ""),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", PASSAGES, ""),
        ("snowflake-arctic-embed2:568m", "query: ", ""),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: ", ""),
        ("bge-m3", "", ""),
        ("text-embedding-3-large", "", ""),
        ("some-model-e512", "", ""),
    ],
)
def test_each_family_gets_what_its_model_card_says(
    model: str, question: str, document: str
) -> None:
    assert prefixes_for(model) == TextPrefixes(question, document)


def test_settings_replace_or_remove_a_prefix() -> None:
    assert prefixes_for("bge-m3", question="Find:\\n") == TextPrefixes("Find:\n", "")
    assert prefixes_for("nomic-embed-text", document="none") == TextPrefixes("search_query: ", "")
    assert prefixes_for("nomic-embed-text", "none", "None") == TextPrefixes()
