"""The error classes of the client."""

import storeapi


def error_tree(root=storeapi.StoreError):
    """Every class of the tree, depth first, as it is drawn."""
    yield root
    for child in root.__subclasses__():
        yield from error_tree(child)
