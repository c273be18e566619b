"""Stored labels: their encoding, and the search for one label."""

from itertools import product

import pytest

from store_service.model.resources import has_label, labels_from_text, labels_to_text

VALUES = ["", "new", "\\", '"', '\\"', '","b":"new', '"b":"new"', "{}", "a\\", "ü", "😀", "new "]
"""Values that contain parts of the encoding, or need escapes."""


@pytest.mark.parametrize("labels", [dict(zip("ab", pair, strict=True)) for pair in product(VALUES, repeat=2)])
def test_a_label_is_found_if_it_is_stored(labels: dict[str, str]) -> None:
    """With its key and its value, and no other value. Parts of keys and values are not labels."""
    text = labels_to_text(labels)
    assert labels_from_text(text) == labels
    for key, value in product(["a", "b", "c"], VALUES):
        assert has_label(text, key, value) == (labels.get(key) == value)


def test_end_of_a_key_is_not_a_label() -> None:
    """Nor the beginning of a value."""
    text = labels_to_text({"status.b": "newer"})
    assert not has_label(text, "b", "newer")
    assert not has_label(text, "status.b", "new")
    assert not has_label("", "b", "")
