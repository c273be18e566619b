"""Serves as `python -m store_service` does, but for how much one transaction or step takes: one row."""

from store_service.__main__ import main
from store_service.service import counting, large_deletions, matching_count, pages

large_deletions.MAX_ROWS = counting.MAX_ROWS = matching_count.MAX_ROWS = 1
large_deletions.MAX_POSTS = 2
large_deletions.STEP_SECONDS = large_deletions.TAKEOVER_SECONDS = 0.03
pages.FETCH_ROWS = 3
pages.MAX_EXAMINED_ROWS = 1000
main()
