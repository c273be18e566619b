"""One interface to both resource services, so that a rule of posts and comments is tested once."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from storeapi.v1 import comments_pb2, posts_pb2

from tests.support.stubs import Stubs


class ResourceApi:
    """PostService or CommentService."""

    def __init__(self, name: str, stubs: Stubs, *, post_id: int = 0) -> None:
        """Creates the interface to one service.

        Args:
            name: Post or Comment.
            stubs: The stubs of all services.
            post_id: The post of new comments.
        """
        self.name = name
        self.field = name.lower()
        self.plural = f"{self.field}s"
        self.pb = posts_pb2 if name == "Post" else comments_pb2
        self.stub = stubs.posts if name == "Post" else stubs.comments
        self.post_id = post_id

    @property
    def not_found(self) -> str:
        return f"{self.field.upper()}_NOT_FOUND"

    def resource(self, **fields: Any) -> Any:
        return getattr(self.pb, self.name)(**fields)

    def draft(self, body: str = "a body", **fields: Any) -> Any:
        """Builds a resource for a create request."""
        return self.resource(body=body, **({"post_id": self.post_id} if self.post_id else {}) | fields)

    def call(self, method: str, **fields: Any) -> Any:
        """Calls a method with the request type of its name."""
        return getattr(self.stub, method)(getattr(self.pb, f"{method}Request")(**fields))

    def create(self, resource: Any, **options: Any) -> Any:
        return self.call(f"Create{self.name}", **{self.field: resource}, **options)

    def get(self, id: int = 0, **options: Any) -> Any:
        return self.call(f"Get{self.name}", id=id, **options)

    def page(self, **options: Any) -> Any:
        return self.call(f"List{self.name}s", **options)

    def update(self, resource: Any, paths: Sequence[str] = (), **options: Any) -> Any:
        mask = {"update_mask": FieldMask(paths=paths)} if paths else {}
        return self.call(f"Update{self.name}", **{self.field: resource}, **mask, **options)

    def delete(self, id: int, **options: Any) -> Any:
        return self.call(f"Delete{self.name}", id=id, **options)

    def batch_get(self, ids: Sequence[int], **options: Any) -> Any:
        return self.call(f"BatchGet{self.name}s", ids=ids, **options)

    def batch_create(self, resources: Sequence[Any], *, return_existing: bool = False, **options: Any) -> Any:
        requests = [{self.field: resource, "return_existing": return_existing} for resource in resources]
        return self.call(f"BatchCreate{self.name}s", requests=requests, **options)

    def batch_update(self, updates: Sequence[tuple[Any, Sequence[str]]], **options: Any) -> Any:
        """Calls the batch update with resources and the paths of their masks."""
        requests = [
            {self.field: resource, "update_mask": FieldMask(paths=paths)} if paths else {self.field: resource}
            for resource, paths in updates
        ]
        return self.call(f"BatchUpdate{self.name}s", requests=requests, **options)

    def batch_delete(self, ids: Sequence[int], **options: Any) -> Any:
        return self.call(f"BatchDelete{self.name}s", ids=ids, **options)

    def resources_in(self, answer: Any) -> list[Any]:
        """Returns the posts or comments in a response."""
        return list(getattr(answer, self.plural))

    async def create_one(self, body: str = "a body") -> Any:
        """Creates one resource."""
        return await self.create(self.draft(body))

    async def create_many(self, count: int, body: str = "a body") -> list[Any]:
        """Creates resources with one batch request."""
        return self.resources_in(await self.batch_create([self.draft(f"{body} {n}") for n in range(count)]))

    async def all_pages(self, **options: Any) -> list[list[Any]]:
        """Returns all pages of a list."""
        return await self.all_pages_after("", **options)

    async def all_pages_after(self, token: str, **options: Any) -> list[list[Any]]:
        """Returns all pages after a page token."""
        pages = []
        while True:
            answer = await self.page(page_token=token, **options)
            pages.append(self.resources_in(answer))
            token = answer.next_page_token
            if not token:
                return pages
