"""The revisions of the schema, and the names of the objects that each creates."""

UPGRADE_TABLES = ("orphaned_comments", "undecodable_bodies", "renumbered_resources")
"""Tables that only an upgrade writes, for rows that it could not keep unchanged."""

MADE_BY = {
    "0001": ("posts", "comments"),
    "0002": (
        *("orphaned_comments", "undecodable_bodies", "renumbered_resources"),
        *("posts_extra_columns", "comments_extra_columns"),
        *("posts_extra_columns_id_idx", "comments_extra_columns_id_idx"),
        *("new_posts", "new_comments", "comments_post_id_id_idx"),
    ),
    "0003": (
        *("changes", "feed", "requests"),
        *("requests_create_time_idx", "changes_xid_seq_idx", "store_changes_notify"),
    ),
    "0004": ("new_requests",),
    "0005": (),
    "0006": ("post_deletions",),
    "0007": ("new_changes",),
    "0008": (
        *("labels", "store_labels", "comments_reply_to_id_id_idx", "comments_thread_idx"),
        "comments_post_id_create_time_idx",
        *(
            f"{table}_{name}"
            for table in ("posts", "comments")
            for name in (
                *("author_id_idx", "external_id_idx", "create_time_idx"),
                *("labels_insert", "labels_delete", "labels_update"),
            )
        ),
    ),
    "0009": (
        *(
            "deleted_posts",
            "deleted_comments",
            "revisions",
            "revisions_author_idx",
            "comments_tombstones_idx",
        ),
        *("thread_deletions", "thread_deletions_post_id_idx", "restorations"),
        *(f"deleted_comments_{name}_idx" for name in ("post_id_id", "reply_to_id_id", "post_id_create_time")),
        *("deleted_comments_thread_idx", "deleted_comments_deleted_with_idx"),
        *(
            f"{table}_{name}"
            for table in ("deleted_posts", "deleted_comments")
            for name in (
                *("author_id_idx", "external_id_id_idx", "create_time_idx", "purge_time_idx"),
                *("labels_insert", "labels_delete", "labels_update"),
            )
        ),
    ),
    "0010": (
        "search_index",
        *(
            f"{table}{end}"
            for table in ("post_search", "comment_search")
            # The tables that FTS5 creates, and the index of PostgreSQL.
            for end in ("", "_data", "_idx", "_content", "_config", "_tokens_idx")
        ),
    ),
    "0011": (),
    "0012": (),
}
"""The names of the objects that each revision creates, including temporary ones; oldest revision first."""

BEFORE = "0001"
"""The revision of a legacy database."""
