# Made from storeapi/_async/__init__.py by tools/generate_sync.py: change that one, then `make protos`.
"""The client for threads."""
