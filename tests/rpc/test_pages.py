"""Lists: their order, their pages, and the tokens that bind the pages together. True of both services."""

import string
from collections.abc import Sequence

import grpc
import pytest

from store_service import config as settings
from store_service.config import Config
from store_service.server import serving
from tests.rpc.helpers import ONE_ENGINE, Side
from tests.support import Stubs, failure

PAGE_BYTES = 3 * 1024 * 1024


def ids_of(pages: Sequence[Sequence[object]]) -> list[int]:
    return [item.id for page in pages for item in page]  # type: ignore[attr-defined]


async def a_token(side: Side, **options: object) -> str:
    """The token of a second page."""
    await side.several(3)
    return (await side.page(page_size=1, **options)).next_page_token


async def test_the_default_order_is_oldest_first(side: Side) -> None:
    """Unset and "id" mean the same, and spaces do not matter."""
    created = await side.several(3)

    for order_by in ("", "id", " id ", "\tid\n"):
        assert side.of(await side.page(order_by=order_by)) == created


async def test_id_desc_is_newest_first(side: Side) -> None:
    """ "id desc" turns the list around, on one page and over several."""
    created = await side.several(5)

    for order_by in ("id desc", "id  desc", " id\tdesc "):
        assert side.of(await side.page(order_by=order_by)) == created[::-1]
        pages = await side.all_pages(order_by=order_by, page_size=2)
        assert [item for page in pages for item in page] == created[::-1]


@ONE_ENGINE
async def test_an_unknown_order_is_refused(side: Side) -> None:
    """What cannot be honoured is not ignored."""
    for order_by in ("ID", "id asc", "body", "create_time", "id, body", "id desc desc", "desc", "\0", "%"):
        error = await failure(side.page(order_by=order_by))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"), order_by
        assert error.fields == ["order_by"]


async def test_an_empty_list_is_no_error(stubs: Stubs) -> None:
    """Nothing stored is an empty page, and the last one."""
    for name in ("Post", "Comment"):
        side = Side(name, stubs)

        answer = await side.page()

        assert (side.of(answer), answer.next_page_token) == ([], "")


async def test_a_page_holds_50_unless_asked_otherwise(side: Side) -> None:
    """page_size 0 means 50; the token leads to the rest."""
    created = await side.several(52)

    pages = await side.all_pages()

    assert [len(page) for page in pages] == [50, 2]
    assert ids_of(pages) == [item.id for item in created]


async def test_a_page_never_holds_more_than_1000(side: Side) -> None:
    """Larger sizes mean 1000, without an error."""
    await side.several(1000)
    await side.several(2)

    for page_size in (1000, 1001, 2**31 - 1):
        answer = await side.page(page_size=page_size)

        assert len(side.of(answer)) == 1000
        assert answer.next_page_token


@ONE_ENGINE
async def test_a_negative_page_size_is_refused(side: Side) -> None:
    """There is no page of less than nothing."""
    error = await failure(side.page(page_size=-1))

    assert (error.reason, error.fields) == ("FIELD_INVALID", ["page_size"])


@pytest.mark.parametrize("order_by", ["id", "id desc"])
async def test_pages_put_together_are_the_list(side: Side, order_by: str) -> None:
    """Whatever the size, every page but the last is full, and nothing is missing or there twice."""
    ids = [item.id for item in await side.several(450)]
    expected = ids if order_by == "id" else ids[::-1]

    for page_size in (7, 199, 200, 201, 400, 449, 450, 451):
        pages = await side.all_pages(page_size=page_size, order_by=order_by)

        assert ids_of(pages) == expected
        assert [len(page) for page in pages[:-1]] == [page_size] * (len(pages) - 1)
        assert 0 < len(pages[-1]) <= page_size


async def test_a_full_last_page_has_no_token(side: Side) -> None:
    """There is a token only where there is a next page."""
    await side.several(4)

    pages = await side.all_pages(page_size=2)

    assert [len(page) for page in pages] == [2, 2]


async def test_page_size_may_change_between_pages(side: Side) -> None:
    """A token says where to go on, not how far."""
    created = await side.several(10)

    first = await side.page(page_size=3)
    second = await side.page(page_size=5, page_token=first.next_page_token)
    third = await side.page(page_token=second.next_page_token)

    assert [len(side.of(it)) for it in (first, second, third)] == [3, 5, 2]
    assert side.of(first) + side.of(second) + side.of(third) == created


@pytest.mark.parametrize("order_by", ["id", "id desc"])
async def test_a_list_says_on_its_first_page_alone_from_where_to_watch(side: Side, order_by: str) -> None:
    """A token of a later page would leave out what changed after the first was read."""
    await side.several(3)

    first = await side.page(page_size=1, order_by=order_by)
    second = await side.page(page_size=1, order_by=order_by, page_token=first.next_page_token)
    third = await side.page(page_size=1, order_by=order_by, page_token=second.next_page_token)

    assert first.resume_token
    assert [second.resume_token, third.resume_token] == ["", ""]


async def test_an_empty_list_says_from_where_to_watch_too(stubs: Stubs) -> None:
    """Who finds nothing is who waits for the first."""
    for name in ("Post", "Comment"):
        assert (await Side(name, stubs).page()).resume_token


@pytest.mark.parametrize("order_by", ["id", "id desc"])
async def test_what_stays_is_seen_once_while_others_come_and_go(side: Side, order_by: str) -> None:
    """Deleting what was seen, what the token points at, and what comes next, moves nobody else."""
    ids = [item.id for item in await side.several(9)]
    ids = ids if order_by == "id" else ids[::-1]

    first = await side.page(page_size=3, order_by=order_by)
    await side.batch_delete([ids[0], ids[2], ids[3]])
    await side.several(2)
    rest = await side.all_pages_after(first.next_page_token, page_size=3, order_by=order_by)

    seen = ids_of([side.of(first), *rest])
    assert len(seen) == len(set(seen))
    assert [id for id in seen if id in ids] == [*ids[:3], *ids[4:]]


async def test_a_token_may_be_used_again(side: Side) -> None:
    """A page can be turned twice; a token is not used up."""
    token = await a_token(side)

    assert await side.page(page_token=token) == await side.page(page_token=token)


async def test_a_token_survives_a_restart(config: Config) -> None:
    """Another server on the same file goes on where the first one stopped."""
    tokens, pages = {}, {}
    async with serving(config) as first, grpc.aio.insecure_channel(first.address) as channel:
        post = await Stubs(channel).create_post()
        for name in ("Post", "Comment"):
            side = Side(name, Stubs(channel), post_id=post.id if name == "Comment" else 0)
            tokens[name] = await a_token(side)
            pages[name] = await side.page(page_token=tokens[name])

    async with serving(config) as second, grpc.aio.insecure_channel(second.address) as channel:
        for name, token in tokens.items():
            assert await Side(name, Stubs(channel)).page(page_token=token) == pages[name]


@ONE_ENGINE
async def test_a_cut_token_is_invalid(side: Side) -> None:
    """No beginning and no end of a token is a token."""
    token = await a_token(side)

    for end in range(1, len(token)):
        for part in (token[:end], token[end:]):
            error = await failure(side.page(page_token=part))
            assert (error.reason, error.fields) == ("PAGE_TOKEN_INVALID", ["page_token"]), part


@ONE_ENGINE
async def test_a_token_with_any_character_changed_is_invalid(side: Side) -> None:
    """A change of one character, wherever it is, never leads to another page."""
    token = await a_token(side)
    alphabet = string.ascii_letters + string.digits + "-_"

    for index, character in enumerate(token):
        near = alphabet[(alphabet.index(character) + 1) % 64]
        far = alphabet[(alphabet.index(character) + 32) % 64]
        for other in (near, far, "+", "/", "=", " ", "é"):
            changed = token[:index] + other + token[index + 1 :]
            error = await failure(side.page(page_token=changed))
            assert error.reason == "PAGE_TOKEN_INVALID", changed


@ONE_ENGINE
async def test_a_token_with_something_added_is_invalid(side: Side) -> None:
    """Nothing may stand before or after a token."""
    token = await a_token(side)

    for more in ("=", "==", "A", "AAAA", " ", "\n", "\0", "\U0001f600"):
        for changed in (token + more, more + token):
            assert (await failure(side.page(page_token=changed))).reason == "PAGE_TOKEN_INVALID", changed


@ONE_ENGINE
async def test_what_never_was_a_token_is_invalid(side: Side) -> None:
    """Text that looks like nothing of ours is refused, not answered with the first page."""
    for token in ("x", "42", " ", "\0", "A" * 32, "_" * 32, "A" * 100_000, "é" * 32):
        error = await failure(side.page(page_token=token))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"), token


async def test_a_token_of_the_other_order_is_refused(side: Side) -> None:
    """order_by may not change between pages."""
    token = await a_token(side)

    error = await failure(side.page(page_token=token, order_by="id desc"))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_MISMATCH")
    assert error.fields == ["page_token"]


async def test_the_same_order_in_other_words_is_the_same_query(side: Side) -> None:
    """Spaces in order_by, and leaving the default out, do not make a token foreign."""
    token = await a_token(side)

    assert await side.page(page_token=token, order_by="id") == await side.page(page_token=token)


async def test_a_token_of_another_posts_comments_is_refused(stubs: Stubs, comments: Side) -> None:
    """post_id may not change between pages, also not to or from all posts."""
    other = await stubs.create_post()
    token = await a_token(comments, post_id=comments.post_id)
    token_of_all = (await comments.page(page_size=1)).next_page_token

    for options in (
        {"page_token": token, "post_id": other.id},
        {"page_token": token},
        {"page_token": token_of_all, "post_id": comments.post_id},
    ):
        assert (await failure(comments.page(**options))).reason == "PAGE_TOKEN_MISMATCH"


async def test_a_token_of_posts_is_none_of_comments(posts: Side, comments: Side) -> None:
    """A token belongs to one resource."""
    of_posts, of_comments = await a_token(posts), await a_token(comments)

    assert (await failure(comments.page(page_token=of_posts))).reason == "PAGE_TOKEN_MISMATCH"
    assert (await failure(posts.page(page_token=of_comments))).reason == "PAGE_TOKEN_MISMATCH"


@pytest.mark.parametrize("body", ["x" * 65_000, "€" * 21_000], ids=["ascii", "three-byte"])
@pytest.mark.parametrize("order_by", ["id", "id desc"])
async def test_a_page_is_cut_at_3_mib_and_nothing_is_lost(side: Side, body: str, order_by: str) -> None:
    """Large bodies make short pages, counted in bytes; the token goes on right after the cut."""
    created = [*await side.several(60, body), *await side.several(60, body)]
    expected = created if order_by == "id" else created[::-1]

    pages, token = [], ""
    while not pages or token:
        answer = await side.page(page_size=1000, page_token=token, order_by=order_by)
        assert answer.ByteSize() <= PAGE_BYTES
        pages.append(side.of(answer))
        token = answer.next_page_token

    assert [item for page in pages for item in page] == expected
    # As many as fit: one more would not.
    one = len(body.encode()) + 100
    assert all(len(page) * one > PAGE_BYTES - one for page in pages[:-1])


class TestLargestBodies:
    """With the largest body that a setting allows."""

    @pytest.fixture
    def config(self, database_url: str) -> Config:
        return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", max_body_bytes=1_048_576)

    async def test_a_page_holds_at_least_one_and_stays_below_a_message(self, side: Side) -> None:
        """A megabyte each: pages of two, for three would pass 3 MiB with what else is in them."""
        created = [await side.stored("x" * 1_048_576) for _ in range(5)]

        pages = await side.all_pages(page_size=1000)

        assert [item for page in pages for item in page] == created
        assert [len(page) for page in pages] == [2, 2, 1]
