"""The rules of posts and comments. No gRPC here, and no SQL text."""
