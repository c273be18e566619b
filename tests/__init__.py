"""Tests of the service, its client, and the project."""

import os

from store_service.grpc_core import ENVIRONMENT

# As in the service; before any test imports gRPC.
os.environ.setdefault("GRPC_EXPERIMENTS", ENVIRONMENT["GRPC_EXPERIMENTS"])
