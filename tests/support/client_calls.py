"""Every call of the client."""

import storeapi

COMMENT_DRAFT = storeapi.CommentDraft(post_id=1, body="a")


# Every method of both groups, and a response that it can read.
CALLS = {
    "posts.create": lambda c, **k: c.posts.create(body="a", **k),
    "posts.get": lambda c, **k: c.posts.get(1, **k),
    "posts.update": lambda c, **k: c.posts.update(1, body="a", **k),
    "posts.delete": lambda c, **k: c.posts.delete(1, **k),
    "posts.get_many": lambda c, **k: c.posts.get_many([1], **k),
    "posts.create_many": lambda c, **k: c.posts.create_many(["a"], **k),
    "posts.delete_many": lambda c, **k: c.posts.delete_many([1], **k),
    "posts.list": lambda c, **k: anext(c.posts.list(**k)),
    "posts.pages": lambda c, **k: anext(c.posts.pages(**k)),
    "comments.create": lambda c, **k: c.comments.create(post_id=1, body="a", **k),
    "comments.get": lambda c, **k: c.comments.get(1, **k),
    "comments.update": lambda c, **k: c.comments.update(1, body="a", **k),
    "comments.delete": lambda c, **k: c.comments.delete(1, **k),
    "comments.get_many": lambda c, **k: c.comments.get_many([1], **k),
    "comments.create_many": lambda c, **k: c.comments.create_many([COMMENT_DRAFT], **k),
    "comments.delete_many": lambda c, **k: c.comments.delete_many([1], **k),
    "comments.count": lambda c, **k: c.comments.count([1], **k),
    "comments.list": lambda c, **k: anext(c.comments.list(**k)),
    "comments.pages": lambda c, **k: anext(c.comments.pages(**k)),
}
