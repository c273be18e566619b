"""The open file limit of the process. Each connection needs a file descriptor."""

import resource

import structlog

RESERVE = 128
"""Descriptors that are reserved for files other than connections."""

MIN_CONNECTIONS = 16
"""Minimum number of connections, whatever the limit is."""

log = structlog.get_logger("store_service.server")


def room_for(connections: int) -> int:
    """Raises the open file limit for a number of connections. Returns that number, or the number of
    connections that the limit allows.

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
            # On macOS the hard limit may be "infinity" although the kernel has a lower limit.
            limit = soft
    if limit >= needed:
        log.info("open file limit raised", before=soft, limit=limit)
        return connections
    allowed = max(limit - RESERVE, MIN_CONNECTIONS)
    log.warning(
        "open file limit is too low for STORE_MAX_CONNECTIONS, accepting fewer connections",
        limit=limit,
        needed=needed,
        max_connections=allowed,
    )
    return allowed
