"""Validates requests and converts them to values of `store_service.model`, without a database.

All violations of a request are collected, and the first one selects the error. The rule of a field applies to
every request that has the field. The length of a list is checked before its elements: a request can contain
millions of numbers, and so can a compressed request of a few kilobytes.
"""

from store_service.rpc.validation.idempotency import idempotency_key
from store_service.rpc.validation.requests import Validation

__all__ = ["Validation", "idempotency_key"]
