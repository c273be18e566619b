"""The client for asyncio. The client for threads, beside it in _sync, is made from these files."""
