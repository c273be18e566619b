"""The paths of the files for clients in other languages.

    buf generate "$(python -m storeapi.files protos)" --template buf.gen.yaml

prints one of the paths below; without a name all of them are printed.
"""

import argparse
from pathlib import Path
from typing import Final

_PACKAGE = Path(__file__).resolve().parent

PROTOS: Final = _PACKAGE / "protos"
"""For `protoc -I` and `buf generate`: the .proto files, and templates of buf for some languages."""

DESCRIPTORS: Final = _PACKAGE / "v1" / "descriptors.binpb"
"""The same as one FileDescriptorSet, with comments, all imports, and the types of error details."""

SERVICE_CONFIG: Final = _PACKAGE / "service_config.json"
"""The gRPC service config: deadlines and retries."""

_NAMED: Final = {"protos": PROTOS, "descriptors": DESCRIPTORS, "service-config": SERVICE_CONFIG}


def main() -> None:
    """Prints the path with the name in the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m storeapi.files", description="Prints the paths of the files for other languages."
    )
    parser.add_argument("name", nargs="?", choices=_NAMED, help="print only this path")
    name = parser.parse_args().name

    if name:
        print(_NAMED[name])  # noqa: T201
        return
    for each, path in _NAMED.items():
        print(f"{each}\t{path}")  # noqa: T201


if __name__ == "__main__":
    main()
