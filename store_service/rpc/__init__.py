"""The RPC layer: checks requests, calls the service layer, and converts its results. It contains no SQL."""
