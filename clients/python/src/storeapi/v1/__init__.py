"""Generated messages and stubs of the API's version 1 (made from protos/ by `make protos`)."""
