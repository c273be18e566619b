"""Authentication and authorization: API keys, tokens, certificates, and the files that hold them."""
