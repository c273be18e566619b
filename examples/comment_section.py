"""A comment section for a web site, with live updates: Starlette, server-rendered pages, the asyncio client.

    make install && make run                        # the service, in one terminal
    .venv/bin/python examples/comment_section.py    # this program, in another; then open http://127.0.0.1:8000

Besides `storeapi` it needs itsdangerous, jinja2, starlette and uvicorn, which `make install` installs.
docs/comment-section.md explains the program.

The login asks for a name and no password: it is a stand-in for the login of your application. The user
"moderator" can hide comments, restore deleted ones, and read former versions. With STORE_UNDELETE_HOURS=24
the service keeps deleted comments for a day.
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import storeapi
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates


@dataclass(frozen=True)
class Article:
    """An article of the application. The service has a post for it, with the external_id "article:NUMBER"."""

    title: str
    text: str


ARTICLES: Final = {
    41: Article("Bread without kneading", "Flour, water, salt, a little yeast, and eighteen hours of time."),
    42: Article("A garden on the balcony", "Herbs grow in any box that has holes in its bottom."),
}
MODERATORS: Final = {"moderator"}
VISIBLE: Final = {"status": "visible"}
PAGE_SIZE: Final = 20

FILES: Final = Path(__file__).parent / "comment_section_files"
TEMPLATES: Final = Jinja2Templates(FILES)
TEMPLATES.env.globals["new_form_id"] = secrets.token_hex
# Without a secret of its own, a restart of this program ends all sessions.
SESSION_SECRET: Final = os.environ.get("SESSION_SECRET") or secrets.token_hex()

log = logging.getLogger("comment_section")


class Feed:
    """The change feed of all comments: one watch, and a queue for each open page."""

    def __init__(self) -> None:
        """Starts without pages."""
        self._queues: set[asyncio.Queue[storeapi.ChangeBatch | None]] = set()
        self._is_closed = False

    async def follow(self, client: storeapi.AsyncStoreClient) -> None:
        """Distributes changes until it is cancelled. The watch itself survives restarts of the service."""
        while True:
            try:
                async with client.changes.watch(kinds=["comment"], timeout=None) as watch:
                    batches = watch.batches()
                    await anext(batches)
                    # Changes before this watch may have been missed.
                    self._distribute(None)
                    async for batch in batches:
                        self._distribute(batch)
            except storeapi.StoreError:
                log.exception("The watch has failed. A new one starts.")
                await asyncio.sleep(1)

    async def batches(self) -> AsyncIterator[storeapi.ChangeBatch | None]:
        """Iterates over all changes from now on.

        None, which is also the first value, means: changes may have been missed, so read the comments now.
        """
        queue = asyncio.Queue[storeapi.ChangeBatch | None](maxsize=1000)
        queue.put_nowait(None)
        self._queues.add(queue)
        try:
            while True:
                batch = await queue.get()
                if self._is_closed:
                    return
                yield batch
        finally:
            self._queues.discard(queue)

    def close(self) -> None:
        """Ends all iterations, so that the server can stop."""
        self._is_closed = True
        self._distribute(None)

    def _distribute(self, batch: storeapi.ChangeBatch | None) -> None:
        for queue in self._queues:
            if queue.full():
                # The browser reads too slowly. It continues with the current comments.
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(batch)


def store(request: Request) -> storeapi.AsyncStoreClient:
    """The client of the service."""
    client: storeapi.AsyncStoreClient = request.state.client
    return client


async def post_of(request: Request) -> storeapi.Post:
    """The post of the article in the path, which is created when it is used first."""
    number: int = request.path_params["number"]
    if number not in ARTICLES:
        raise HTTPException(404)
    posts, external_id = store(request).posts, f"article:{number}"
    try:
        return await posts.get(external_id=external_id)
    except storeapi.PostNotFound:
        # Another request may create it at the same time; both get the same post.
        title = ARTICLES[number].title
        return await posts.create(body=title, external_id=external_id, return_existing=True)


async def comment_of(request: Request, *, show_deleted: bool = False) -> storeapi.Comment:
    """The comment of the path, which must belong to the article."""
    post = await post_of(request)
    comment = await store(request).comments.get(request.path_params["id"], show_deleted=show_deleted)
    if comment.post_id != post.id:
        raise HTTPException(404)
    return comment


async def checked_form(request: Request) -> dict[str, str]:
    """The fields of a form that this site has given to this browser."""
    fields = parse_qsl((await request.body()).decode("ascii", "replace"))
    # Browsers send CRLF at the end of a line.
    form = {name: value.replace("\r\n", "\n").strip() for name, value in fields}
    expected = request.session.get("csrf", "")
    if not expected or not secrets.compare_digest(form.get("csrf", "").encode(), expected.encode()):
        raise HTTPException(403, "This form has expired. Load the page again.")
    return form


def page_context(request: Request) -> dict[str, Any]:
    """The values that templates use besides the comments."""
    user, token = request.session.get("user"), request.query_params.get("page", "")
    return {
        "user": user,
        "is_moderator": user in MODERATORS,
        "csrf": request.session.setdefault("csrf", secrets.token_hex()),
        "number": request.path_params.get("number"),
        "token": token,
        # Forms lead back to the page of comments on which they are.
        "query": f"?{urlencode({'page': token})}" if token else "",
    }


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page from a template."""
    # Templates escape all values. If one does not, browsers still run only the script of this site.
    csp = "default-src 'self'; style-src 'self' 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    headers = {"Content-Security-Policy": csp}
    return TEMPLATES.TemplateResponse(request, template, page_context(request) | values, status, headers)


def to_comment(request: Request, id: int) -> Response:
    """Leads back to a comment, on the page of comments from which the form came."""
    context = page_context(request)
    return RedirectResponse(f"/articles/{context['number']}{context['query']}#comment-{id}", 303)


def thread(request: Request, post: storeapi.Post) -> storeapi.AsyncPager[storeapi.Comment]:
    """The comments from the page token of the request on: the newest thread first, replies below."""
    return store(request).comments.list(
        post_id=post.id,
        order_by="thread desc",
        # Moderators see what they can restore. Others see a tombstone if there are replies.
        filter=storeapi.CommentFilter(show_deleted=request.session.get("user") in MODERATORS),
        page_size=PAGE_SIZE,
        page_token=request.query_params.get("page", ""),
    )


async def index(request: Request) -> Response:
    """The articles, each with the number of its visible comments."""
    external_ids = [f"article:{number}" for number in ARTICLES]
    posts = await store(request).posts.get_many(external_ids=external_ids, allow_missing=True)
    by_id = await store(request).comments.count(
        [post.id for post in posts], filter=storeapi.CommentFilter(labels=VISIBLE)
    )
    counts = {post.external_id: by_id[post.id] for post in posts}
    return page(request, "index.html", articles=ARTICLES, counts=counts)


async def article(request: Request) -> Response:
    """An article and a page of its comments."""
    post = await post_of(request)
    comments = await anext(thread(request, post).pages())
    return page(request, "article.html", article=ARTICLES[request.path_params["number"]], comments=comments)


async def search(request: Request) -> Response:
    """The visible comments of an article that match the query, the newest first."""
    post, query = await post_of(request), request.query_params.get("q", "")
    results: list[storeapi.SearchResult[storeapi.Comment]] = []
    problem = ""
    try:
        visible = storeapi.CommentFilter(labels=VISIBLE)
        found = store(request).comments.search(query, post_id=post.id, filter=visible, limit=PAGE_SIZE)
        results = [it async for it in found]
    except storeapi.FieldInvalid as error:
        # The user has made a mistake in the query, such as a missing quote.
        problem = error.violations[0].description
    return page(request, "search.html", search=query, results=results, problem=problem)


async def live(request: Request) -> Response:
    """The changes of a page of comments up to `last`, as server-sent events."""
    post, last = await post_of(request), request.query_params.get("last")
    context, template = page_context(request), TEMPLATES.get_template("comment.html")

    def event(comment: storeapi.Comment, *, is_new: bool = True) -> str:
        html = template.render(context, comment=comment)
        return f"data: {json.dumps({'id': comment.id, 'html': html, 'isNew': is_new})}\n\n"

    async def events() -> AsyncIterator[str]:
        # After an error the browser connects again.
        with suppress(storeapi.StoreError):
            async for batch in request.state.feed.batches():
                changes = [change for change in batch or () if change.post_id == post.id]
                # A restored comment can bring back tombstones above it, which have no changes of their own.
                if batch is None or any(change.action == "undelete" for change in changes):
                    ids = []
                    async for comment in thread(request, post):
                        ids.append(comment.id)
                        yield event(comment)
                        if str(comment.id) == last:
                            break
                    yield f"data: {json.dumps({'ids': ids})}\n\n"
                    continue
                # A heartbeat of the feed also keeps the connection of the browser open.
                yield ":\n\n"
                for change in changes:
                    if change.action == "delete":
                        # Without a delete_time if the comment cannot be restored.
                        time = change.resource.delete_time or change.commit_time
                        yield event(replace(change.resource, delete_time=time), is_new=False)
                    else:
                        yield event(change.resource)

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def write(request: Request) -> Response:
    """Creates a comment, or a reply if the path names a comment."""
    form, post, user = await checked_form(request), await post_of(request), request.session.get("user")
    if not user:
        raise HTTPException(403, "Log in first.")
    body, parent = form.get("body", ""), request.path_params.get("id", 0)
    # The same form sent twice, for example by a double click, creates one comment.
    request_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{form.get('form_id')} {user} {parent} {body}")
    comment = await store(request).comments.create(
        post_id=post.id, body=body, author=user, labels=VISIBLE, reply_to_id=parent, request_id=request_id
    )
    return to_comment(request, comment.id)


async def edit(request: Request) -> Response:
    """Changes a comment of the user, unless it has changed since the form was made."""
    form, comment = await checked_form(request), await comment_of(request)
    if comment.author != request.session.get("user") or comment.labels != VISIBLE:
        raise HTTPException(403, "Only the author can change a comment, and only while it is visible.")
    try:
        await store(request).comments.update(comment.id, body=form.get("body", ""), etag=form.get("etag", ""))
    except storeapi.EtagMismatch:
        current = await store(request).comments.get(comment.id)
        return page(request, "conflict.html", status=409, comment=current, mine=form.get("body", ""))
    return to_comment(request, comment.id)


async def delete(request: Request) -> Response:
    """Deletes a comment of the user. Replies to it stay, below a tombstone."""
    _, comment = await checked_form(request), await comment_of(request)
    if comment.author != request.session.get("user"):
        raise HTTPException(403, "Only the author can delete a comment.")
    await store(request).comments.delete(comment.id)
    return to_comment(request, comment.id)


async def moderate(request: Request) -> Response:
    """Hides a comment, shows it again, or restores it if it is deleted."""
    form, comment = await checked_form(request), await comment_of(request, show_deleted=True)
    if request.session.get("user") not in MODERATORS:
        raise HTTPException(403, "Only moderators can hide and restore comments.")
    if comment.is_deleted:
        await store(request).comments.undelete(comment.id)
    else:
        status = "hidden" if form.get("status") == "hidden" else "visible"
        await store(request).comments.update(comment.id, set_labels={"status": status})
    return to_comment(request, comment.id)


async def history(request: Request) -> Response:
    """The former versions of a comment."""
    if request.session.get("user") not in MODERATORS:
        raise HTTPException(403, "Only moderators can read former versions.")
    comment = await comment_of(request, show_deleted=True)
    versions = [it async for it in store(request).comments.revisions(comment.id, show_deleted=True)]
    return page(request, "history.html", versions=[comment, *versions])


async def login(request: Request) -> Response:
    """Believes the name that the browser sends; without a name, logs out. USE A REAL LOGIN INSTEAD."""
    form = await checked_form(request)
    request.session["user"] = form.get("name", "")[:40] or None
    return RedirectResponse(request.headers.get("referer", "/"), 303)


async def on_store_error(request: Request, error: Exception) -> Response:
    """The response for an error of the service."""
    if isinstance(error, storeapi.PageTokenMismatch):
        # The user has logged in or out. Moderators have other pages, because these show deleted comments.
        return RedirectResponse(request.url.path, 303)
    if isinstance(error, storeapi.NotFound):
        return PlainTextResponse(str(error), 404)
    if isinstance(error, (storeapi.InvalidRequest, storeapi.PreconditionFailed)):
        return PlainTextResponse(str(error), 400)
    log.error("The service has failed: %s", error)
    return PlainTextResponse("The comments are not available at the moment.", 503)


def application(server: str, feed: Feed) -> Starlette:
    """The web application, which uses the service at an address."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with storeapi.connect_async(server) as client, asyncio.TaskGroup() as tasks:
            following = tasks.create_task(feed.follow(client))
            yield {"client": client, "feed": feed}
            following.cancel()

    comments = "/articles/{number:int}/comments"
    return Starlette(
        routes=[
            Route("/", index),
            Route("/articles/{number:int}", article),
            Route("/articles/{number:int}/search", search),
            Route("/articles/{number:int}/live", live),
            Route(comments, write, methods=["POST"]),
            Route(comments + "/{id:int}", edit, methods=["POST"]),
            Route(comments + "/{id:int}/replies", write, methods=["POST"]),
            Route(comments + "/{id:int}/delete", delete, methods=["POST"]),
            Route(comments + "/{id:int}/status", moderate, methods=["POST"]),
            Route(comments + "/{id:int}/history", history),
            Route("/login", login, methods=["POST"]),
            Mount("/static", StaticFiles(directory=FILES / "static")),
        ],
        middleware=[Middleware(SessionMiddleware, secret_key=SESSION_SECRET)],
        exception_handlers={storeapi.StoreError: on_store_error},
        lifespan=lifespan,
    )


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description="A comment section for a web site.")
    parser.add_argument("--server", default="localhost:50051", help="address of the service")
    parser.add_argument("--port", type=int, default=8000, help="port of this web site on 127.0.0.1")
    arguments = parser.parse_args()
    feed = Feed()

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # uvicorn waits for all responses, and those to open pages have no end.
            feed.close()
            await super().shutdown(sockets)

    Server(uvicorn.Config(application(arguments.server, feed), port=arguments.port)).run()


if __name__ == "__main__":
    main()
