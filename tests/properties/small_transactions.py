"""Serves as `python -m store_service` does, but for how much one transaction or step takes: one row."""

from store_service.__main__ import main
from store_service.store import counting, pages, removal

removal.MAX_ROWS = counting.MAX_ROWS = 1
removal.MAX_POSTS = 2
removal.STEP_SECONDS = removal.TAKEOVER_SECONDS = 0.03
pages.FETCH_ROWS = 3
pages.MAX_EXAMINED_ROWS = 1000
main()
