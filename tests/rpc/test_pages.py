"""Lists: their order, their pages, and the tokens that bind the pages together. True of both services."""

import string
from collections.abc import Sequence

import grpc
import pytest

from store_service.config import Config
from store_service.server import serving
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import expect_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs

PAGE_BYTES = 3 * 1024 * 1024


def ids_of(pages: Sequence[Sequence[object]]) -> list[int]:
    return [item.id for page in pages for item in page]  # type: ignore[attr-defined]


async def a_token(api: ResourceApi, **options: object) -> str:
    """The token of a second page."""
    await api.create_many(3)
    return (await api.page(page_size=1, **options)).next_page_token


async def test_default_order_is_oldest_first(api: ResourceApi) -> None:
    """Unset and "id" are equal, with any spaces."""
    created = await api.create_many(3)

    for order_by in ("", "id", " id ", "\tid\n"):
        assert api.resources_in(await api.page(order_by=order_by)) == created


async def test_id_desc_is_newest_first(api: ResourceApi) -> None:
    """On one page and over several."""
    created = await api.create_many(5)

    for order_by in ("id desc", "id  desc", " id\tdesc "):
        assert api.resources_in(await api.page(order_by=order_by)) == created[::-1]
        pages = await api.all_pages(order_by=order_by, page_size=2)
        assert [item for page in pages for item in page] == created[::-1]


@SQLITE_ONLY
async def test_unknown_order_is_refused(api: ResourceApi) -> None:
    """What cannot be honoured is not ignored."""
    for order_by in ("ID", "id asc", "body", "id, body", "id desc desc", "desc", "\0", "%"):
        error = await expect_error(api.page(order_by=order_by))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"), order_by
        assert error.fields == ["order_by"]


async def test_empty_list_is_one_empty_page(stubs: Stubs) -> None:
    """Nothing stored is an empty page, and the last one."""
    for name in ("Post", "Comment"):
        api = ResourceApi(name, stubs)

        answer = await api.page()

        assert (api.resources_in(answer), answer.next_page_token) == ([], "")


async def test_default_page_size_is_50(api: ResourceApi) -> None:
    """page_size 0 means 50; the token leads to the rest."""
    created = await api.create_many(52)

    pages = await api.all_pages()

    assert [len(page) for page in pages] == [50, 2]
    assert ids_of(pages) == [item.id for item in created]


async def test_page_size_is_capped_at_1000(api: ResourceApi) -> None:
    """Larger sizes mean 1000, without an error."""
    await api.create_many(1000)
    await api.create_many(2)

    for page_size in (1000, 1001, 2**31 - 1):
        answer = await api.page(page_size=page_size)

        assert len(api.resources_in(answer)) == 1000
        assert answer.next_page_token


@SQLITE_ONLY
async def test_negative_page_size_is_refused(api: ResourceApi) -> None:
    error = await expect_error(api.page(page_size=-1))

    assert (error.reason, error.fields) == ("FIELD_INVALID", ["page_size"])


async def test_concatenated_pages_are_the_list(api: ResourceApi) -> None:
    """Every page but the last is full."""
    ids = [item.id for item in await api.create_many(450)]

    for page_size in (7, 199, 200, 201, 400, 449, 450, 451):
        for order_by, expected in (("id", ids), ("id desc", ids[::-1])):
            pages = await api.all_pages(page_size=page_size, order_by=order_by)

            assert ids_of(pages) == expected, (page_size, order_by)
            assert [len(page) for page in pages[:-1]] == [page_size] * (len(pages) - 1)
            assert 0 < len(pages[-1]) <= page_size


async def test_full_last_page_has_no_token(api: ResourceApi) -> None:
    await api.create_many(4)

    pages = await api.all_pages(page_size=2)

    assert [len(page) for page in pages] == [2, 2]


async def test_page_size_may_change_between_pages(api: ResourceApi) -> None:
    created = await api.create_many(10)

    first = await api.page(page_size=3)
    second = await api.page(page_size=5, page_token=first.next_page_token)
    third = await api.page(page_token=second.next_page_token)

    assert [len(api.resources_in(it)) for it in (first, second, third)] == [3, 5, 2]
    assert api.resources_in(first) + api.resources_in(second) + api.resources_in(third) == created


@pytest.mark.parametrize("order_by", ["id", "id desc"])
async def test_first_page_has_a_resume_token(api: ResourceApi, order_by: str) -> None:
    """Later pages do not, because it would miss changes."""
    await api.create_many(3)

    first = await api.page(page_size=1, order_by=order_by)
    second = await api.page(page_size=1, order_by=order_by, page_token=first.next_page_token)
    third = await api.page(page_size=1, order_by=order_by, page_token=second.next_page_token)

    assert first.resume_token
    assert [second.resume_token, third.resume_token] == ["", ""]


async def test_empty_list_has_a_resume_token(stubs: Stubs) -> None:
    for name in ("Post", "Comment"):
        assert (await ResourceApi(name, stubs).page()).resume_token


@pytest.mark.parametrize("order_by", ["id", "id desc"])
async def test_permanent_resources_are_listed_once(api: ResourceApi, order_by: str) -> None:
    """While others are deleted at any place."""
    ids = [item.id for item in await api.create_many(9)]
    ids = ids if order_by == "id" else ids[::-1]

    first = await api.page(page_size=3, order_by=order_by)
    await api.batch_delete([ids[0], ids[2], ids[3]])
    await api.create_many(2)
    rest = await api.all_pages_after(first.next_page_token, page_size=3, order_by=order_by)

    seen = ids_of([api.resources_in(first), *rest])
    assert len(seen) == len(set(seen))
    assert [id for id in seen if id in ids] == [*ids[:3], *ids[4:]]


async def test_page_token_can_be_reused(api: ResourceApi) -> None:
    """A page can be turned twice; a token is not used up."""
    token = await a_token(api)

    assert await api.page(page_token=token) == await api.page(page_token=token)


async def test_page_token_survives_a_restart(config: Config) -> None:
    tokens, pages = {}, {}
    async with serving(config) as first, grpc.aio.insecure_channel(first.address) as channel:
        post = await Stubs(channel).create_post()
        for name in ("Post", "Comment"):
            api = ResourceApi(name, Stubs(channel), post_id=post.id if name == "Comment" else 0)
            tokens[name] = await a_token(api)
            pages[name] = await api.page(page_token=tokens[name])

    async with serving(config) as second, grpc.aio.insecure_channel(second.address) as channel:
        for name, token in tokens.items():
            assert await ResourceApi(name, Stubs(channel)).page(page_token=token) == pages[name]


@SQLITE_ONLY
async def test_truncated_page_token_is_invalid(api: ResourceApi) -> None:
    """No beginning and no end of a token is a token."""
    token = await a_token(api)

    for end in range(1, len(token)):
        for part in (token[:end], token[end:]):
            error = await expect_error(api.page(page_token=part))
            assert (error.reason, error.fields) == ("PAGE_TOKEN_INVALID", ["page_token"]), part


@SQLITE_ONLY
async def test_page_token_with_a_changed_character_is_invalid(api: ResourceApi) -> None:
    """A change of one character, wherever it is, never leads to another page."""
    token = await a_token(api)
    alphabet = string.ascii_letters + string.digits + "-_"

    for index, character in enumerate(token):
        near = alphabet[(alphabet.index(character) + 1) % 64]
        far = alphabet[(alphabet.index(character) + 32) % 64]
        for other in (near, far, "+", "/", "=", " ", "é"):
            changed = token[:index] + other + token[index + 1 :]
            error = await expect_error(api.page(page_token=changed))
            assert error.reason == "PAGE_TOKEN_INVALID", changed


@SQLITE_ONLY
async def test_page_token_with_extra_characters_is_invalid(api: ResourceApi) -> None:
    """Nothing may stand before or after a token."""
    token = await a_token(api)

    for more in ("=", "==", "A", "AAAA", " ", "\n", "\0", "\U0001f600"):
        for changed in (token + more, more + token):
            assert (await expect_error(api.page(page_token=changed))).reason == "PAGE_TOKEN_INVALID", changed


@SQLITE_ONLY
async def test_arbitrary_text_is_not_a_page_token(api: ResourceApi) -> None:
    for token in ("x", "42", " ", "\0", "A" * 32, "_" * 32, "A" * 100_000, "é" * 32):
        error = await expect_error(api.page(page_token=token))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"), token


async def test_page_token_of_another_order_is_refused(api: ResourceApi) -> None:
    """order_by may not change between pages."""
    token = await a_token(api)

    error = await expect_error(api.page(page_token=token, order_by="id desc"))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_MISMATCH")
    assert error.fields == ["page_token"]


async def test_equivalent_orders_are_the_same_query(api: ResourceApi) -> None:
    """Spaces and the explicit default."""
    token = await a_token(api)

    assert await api.page(page_token=token, order_by="id") == await api.page(page_token=token)


async def test_page_token_of_another_post_is_refused(stubs: Stubs, comments: ResourceApi) -> None:
    """And of all posts."""
    other = await stubs.create_post()
    token = await a_token(comments, post_id=comments.post_id)
    token_of_all = (await comments.page(page_size=1)).next_page_token

    for options in (
        {"page_token": token, "post_id": other.id},
        {"page_token": token},
        {"page_token": token_of_all, "post_id": comments.post_id},
    ):
        assert (await expect_error(comments.page(**options))).reason == "PAGE_TOKEN_MISMATCH"


async def test_page_token_of_posts_is_refused_for_comments(posts: ResourceApi, comments: ResourceApi) -> None:
    """A token belongs to one resource."""
    of_posts, of_comments = await a_token(posts), await a_token(comments)

    assert (await expect_error(comments.page(page_token=of_posts))).reason == "PAGE_TOKEN_MISMATCH"
    assert (await expect_error(posts.page(page_token=of_comments))).reason == "PAGE_TOKEN_MISMATCH"


@pytest.mark.parametrize("body", ["x" * 65_000, "€" * 21_000], ids=["ascii", "three-byte"])
async def test_page_is_limited_to_3_mib_without_loss(api: ResourceApi, body: str) -> None:
    created = [*await api.create_many(60, body), *await api.create_many(60, body)]
    for order_by, expected in (("id", created), ("id desc", created[::-1])):
        pages, token = [], ""
        while not pages or token:
            answer = await api.page(page_size=1000, page_token=token, order_by=order_by)
            assert answer.ByteSize() <= PAGE_BYTES
            pages.append(api.resources_in(answer))
            token = answer.next_page_token

        assert [item for page in pages for item in page] == expected, order_by
        # As many as fit: one more would not.
        one = len(body.encode()) + 100
        assert all(len(page) * one > PAGE_BYTES - one for page in pages[:-1]), order_by


class TestLargestBodies:
    """With the largest body that a setting allows."""

    @pytest.fixture
    def config(self, config: Config) -> Config:
        return config.model_copy(update={"max_body_bytes": 1_048_576})

    async def test_page_has_at_least_one_resource_and_fits_a_message(self, api: ResourceApi) -> None:
        """A megabyte each: pages of two, for three would pass 3 MiB with what else is in them."""
        created = [await api.create_one("x" * 1_048_576) for _ in range(5)]

        pages = await api.all_pages(page_size=1000)

        assert [item for page in pages for item in page] == created
        assert [len(page) for page in pages] == [2, 2, 1]
