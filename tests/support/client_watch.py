"""Change batches that a scripted server sends, and what a watch of the client yields."""

import storeapi
from storeapi import Change, ChangeBatch


def post_change(number, action="create"):
    post = storeapi.Post(id=number, body=str(number), etag="v1")
    return Change(action=action, kind="post", id=number, post_id=number, commit_time=None, resource=post)


def change_batch(*numbers, token, **flags):
    return ChangeBatch(changes=tuple(post_change(it) for it in numbers), resume_token=token, **flags)


async def read_ids(watch, count):
    return [(await anext(watch)).id for _ in range(count)]


def resume_tokens(server):
    """Where each connection began."""
    return [call.request.resume_token for call in server.calls_of("Watch")]
