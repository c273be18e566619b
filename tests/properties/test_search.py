"""Searches return what a plain implementation finds, on both engines."""

import unicodedata
from collections.abc import Sequence

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.search import tokenize
from store_service.search.tokenizer import token_spans
from tests.support.property_server import LiveServer, error_reason
from tests.support.search import Term, matches, units

ALPHABETS = (
    "aábcç ",  # Latin
    "еёий ",  # Cyrillic
    "αάσς ",  # Greek
    "東京都タワが ",  # Han, Katakana, Hiragana
    "학교에서 ",  # Hangul
    "ไทยก็ ",  # Thai
    "नमस्ते ",  # Devanagari
    "אבגָ ",  # Hebrew
    "كتَابأ ",  # Arabic
)
SPECIAL = "ﬁ①½㎏ｶﾞe\u0301\u00ad\u200dİßⅣ﷽'\".,*-&|!():<>\\\n\t _#@😀0٣"
"""Characters that are normalized, are in no word, or have a meaning for an engine."""

characters = st.sampled_from(ALPHABETS).flatmap(st.sampled_from) | st.sampled_from(SPECIAL)
bodies = (
    st.lists(
        st.one_of(
            *[st.text(st.sampled_from(it), min_size=1, max_size=8) for it in ALPHABETS],
            st.text(st.sampled_from(SPECIAL), max_size=3),
        ),
        min_size=1,
        max_size=6,
    )
    .map("".join)
    .filter(bool)
)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | bodies


@st.composite
def terms(draw: st.DrawFn, texts: Sequence[str]) -> Term:
    """A term, which is often a part of a text."""
    text = draw(st.sampled_from(texts))
    start = draw(st.integers(0, max(len(text) - 1, 0)))
    part = text[start : start + draw(st.integers(1, 6))] if draw(st.integers(0, 5)) else draw(bodies)[:6]
    is_quoted = draw(st.booleans()) or any(it.isspace() for it in part)
    part = "".join(it for it in part if it not in '"“”„')
    if not is_quoted:
        part = part.strip("*").lstrip("-")
    return Term(
        text=part,
        is_quoted=is_quoted,
        is_prefix=draw(st.booleans()),
        is_excluded=draw(st.integers(0, 3)) == 0,
    )


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[str], list[list[Term]]]:
    """Texts, and queries for them."""
    texts = draw(st.lists(bodies, min_size=1, max_size=8))
    return texts, draw(st.lists(st.lists(terms(texts), min_size=1, max_size=3), min_size=1, max_size=6))


@settings(max_examples=settings().max_examples // 2)
@given(search=searches())
def test_search_finds_what_a_plain_implementation_finds(
    live: LiveServer, search: tuple[list[str], list[list[Term]]]
) -> None:
    """Posts and comments, for words, phrases, prefixes and exclusions in several scripts."""
    texts, queries = search
    (post,) = live.create_posts("0")
    comments = live.create_comments(post.id, *texts)
    for query in queries:
        # Terms without letters and digits are ignored.
        wanted = [it for it in query if units(it.text)]
        if all(it.is_excluded for it in wanted):
            continue
        request = comments_pb2.SearchCommentsRequest(query=" ".join(map(str, query)), post_id=post.id)
        response = live.attempt(live.comments.SearchComments, request)
        while error_reason(response) == "SEARCH_INDEX_NOT_READY":
            response = live.attempt(live.comments.SearchComments, request)

        expected = [it.id for it in comments if matches(it.body, wanted)]
        assert [it.comment.id for it in response.results] == expected[::-1], request.query
        for result in response.results:
            assert "".join(part.text for part in result.snippet) == result.comment.body
            assert any(part.is_match for part in result.snippet)
    live.do(live.posts.DeletePost, posts_pb2.DeletePostRequest(id=post.id, force=True))


@given(text=any_text)
def test_tokens_do_not_depend_on_the_form_of_a_text(text: str) -> None:
    """Equal texts in other forms of Unicode, and in other case, have the same tokens."""
    tokens = tokenize(text)

    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert tokenize(unicodedata.normalize(form, text)) == tokens
    assert tokenize(text.casefold()) == tokens
    assert all(token and not set(token) & set(" *\"'\\:&|!()<>\0") for token in tokens)


@given(text=any_text)
def test_each_token_has_a_place_in_the_text(text: str) -> None:
    """The text between the ends of a token has this token."""
    tokens = tokenize(text)

    spans = list(token_spans(text))

    assert len(spans) == len(tokens)
    assume(tokens)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(
        set(tokenize(text[start:end])) & {token} for token, (start, end) in zip(tokens, spans, strict=True)
    )
