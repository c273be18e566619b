"""Full-text search without a database: tokens of texts, queries, and snippets."""

from store_service.search.query import (
    MAX_QUERY_BYTES,
    MAX_QUERY_TERMS,
    MAX_QUERY_TOKENS,
    Phrase,
    QuerySyntaxError,
    SearchQuery,
    parse,
)
from store_service.search.snippets import SnippetPart, snippet
from store_service.search.tokenizer import VERSION, tokenize

__all__ = [
    "MAX_QUERY_BYTES",
    "MAX_QUERY_TERMS",
    "MAX_QUERY_TOKENS",
    "VERSION",
    "Phrase",
    "QuerySyntaxError",
    "SearchQuery",
    "SnippetPart",
    "parse",
    "snippet",
    "tokenize",
]
