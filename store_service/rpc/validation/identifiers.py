"""Rules for authors, external ids and labels, which callers choose."""

import re
from collections.abc import Iterable, Mapping, Sequence

from store_service.errors import BatchDuplicate, FieldMaskInvalid
from store_service.model import CommentDraft, PostDraft, labels_from_text
from store_service.rpc.validation.violations import Violations, quoted
from store_service.service.operations import MAX_LABELS

MAX_BYTES = 256
"""Maximum size of an author, an external id and the value of a label, in bytes of UTF-8."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Without "_": the JSON form of an update mask cannot express it in every position.
_KEY = re.compile(r"[a-z][a-z0-9./-]{0,62}")
# Valid labels without escapes, with values that cannot be too long: a character has at most 4 bytes.
_COMMON_LABELS = re.compile(
    rf'\{{(?:"{_KEY.pattern}":"[^"\\\x00-\x1f\x7f-\x9f]{{0,{MAX_BYTES // 4}}}",?){{1,{MAX_LABELS}}}\}}'
)
_KEY_RULE = (
    'must have 1 to 63 characters: lower-case letters, digits, ".", "/" and "-", beginning with a letter'
)


def check_identifier(text: str) -> Sequence[str]:
    """Describes the violations of an author, an external id, or the value of a label. It can be empty."""
    if not text:
        return ()
    violations = []
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        violations.append(f"must not be longer than {MAX_BYTES} bytes of UTF-8")
    if _CONTROL.search(text):
        violations.append("must not contain control characters")
    return violations


def check_stored_labels(text: str) -> Sequence[str]:
    """Describes the violations of labels as they are stored. Most labels need not be decoded."""
    return () if not text or _COMMON_LABELS.fullmatch(text) else check_labels(labels_from_text(text))


def check_labels(labels: Mapping[str, str]) -> Sequence[str]:
    """Describes the violations of labels."""
    violations = []
    if len(labels) > MAX_LABELS:
        violations.append(f"must not have more than {MAX_LABELS} labels")
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            violations.append(f"the key {quoted(key)} {_KEY_RULE}")
        violations += [f"the value of {quoted(key)} {description}" for description in check_identifier(value)]
    return violations


def check_label_keys(keys: Iterable[str], field: str, violations: Violations) -> None:
    """Adds a violation for each path of an update mask that names a label with a key that is not valid."""
    for key in keys:
        if not _KEY.fullmatch(key):
            violations.add(FieldMaskInvalid, field, f"the label key {quoted(key)} {_KEY_RULE}")


def check_external_ids(drafts: Sequence[PostDraft | CommentDraft], violations: Violations) -> None:
    """Adds a violation for each external id that an earlier draft has too."""
    if len(drafts) == 1:
        return
    seen: set[str] = set()
    for draft in drafts:
        if draft.external_id in seen:
            violations.add(BatchDuplicate, f"{draft.field}.external_id", "occurs more than once in the batch")
        elif draft.external_id:
            seen.add(draft.external_id)
