"""`python -m benchmarks.client_calls ADDRESS ID`: the client's methods against its raw stubs, one in flight.

Prints JSON. `sync` and `async` are the ratio of the time of `client.posts.get` to that of the stub for the
same post, as medians of alternating blocks. `import_ms` is the time of `import storeapi`.
"""

import asyncio
import json
import statistics
import sys
import time

BLOCKS = 60
CALLS_PER_BLOCK = 50

began = time.perf_counter()
import storeapi  # noqa: E402  # its import is one of the figures

IMPORT_SECONDS = time.perf_counter() - began

from storeapi.v1 import posts_pb2  # noqa: E402  # after the import that is measured


def sync(address: str, id: int) -> float:
    """The ratio for threads."""
    by_method, by_stub = [], []
    with storeapi.connect(address) as client:
        for _ in range(BLOCKS):
            start = time.perf_counter()
            for _ in range(CALLS_PER_BLOCK):
                client.raw.posts.GetPost(posts_pb2.GetPostRequest(id=id), timeout=10)
            middle = time.perf_counter()
            for _ in range(CALLS_PER_BLOCK):
                client.posts.get(id)
            by_method.append(time.perf_counter() - middle)
            by_stub.append(middle - start)
    return statistics.median(by_method) / statistics.median(by_stub)


async def asynchronous(address: str, id: int) -> float:
    """The ratio for asyncio."""
    by_method, by_stub = [], []
    async with storeapi.connect_async(address) as client:
        for _ in range(BLOCKS):
            start = time.perf_counter()
            for _ in range(CALLS_PER_BLOCK):
                await client.raw.posts.GetPost(posts_pb2.GetPostRequest(id=id), timeout=10)
            middle = time.perf_counter()
            for _ in range(CALLS_PER_BLOCK):
                await client.posts.get(id)
            by_method.append(time.perf_counter() - middle)
            by_stub.append(middle - start)
    return statistics.median(by_method) / statistics.median(by_stub)


if __name__ == "__main__":
    address, id = sys.argv[1], int(sys.argv[2])
    found = {
        "sync": sync(address, id),
        "async": asyncio.run(asynchronous(address, id)),
        "import_ms": IMPORT_SECONDS * 1000,
    }
    print(json.dumps(found), flush=True)
