"""The limit of open files of this process, of which every connection needs one."""

import resource

import structlog

RESERVE = 128
"""Files that the process needs beside its connections, and some more."""

LEAST = 16
"""So many connections are always tried."""

log = structlog.get_logger("store_service.server")


def room_for(connections: int) -> int:
    """How many of these connections there can be; raises the limit of open files as far as that is allowed.

    Without a free descriptor a new connection would be neither accepted nor refused, and not logged.
    """
    needed = connections + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if limit > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            # macOS has a limit of the kernel below a hard limit that says "infinity".
            limit = soft
    if limit >= needed:
        log.info("open file limit raised", before=soft, limit=limit)
        return connections
    allowed = max(limit - RESERVE, LEAST)
    log.warning(
        "the limit of open files is too low for STORE_MAX_CONNECTIONS; fewer connections are accepted",
        limit=limit,
        needed=needed,
        max_connections=allowed,
    )
    return allowed
