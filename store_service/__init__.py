"""A posts-and-comments service over gRPC."""
