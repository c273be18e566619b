"""Generated messages and stubs of the API's version 1 (made from protos/ by `make protos`)."""

import warnings

# protobuf 6.30 and 6.31 warn about code of protobuf 5. Newer versions, also 7, load it without a warning.
warnings.filterwarnings("ignore", r"Protobuf gencode version .* at storeapi/v1/", UserWarning)
