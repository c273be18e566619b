"""The command `store-service`; also `python -m store_service`."""

import sys

from store_service import interpreter

# structlog imports rich, if it is installed, for tracebacks that the logs do not have. This costs 0.12 s of
# CPU time and 5 MiB in each process. Commands that print with rich import it later.
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]  # makes the import fail
with interpreter.paused_during_imports():
    from store_service.cli import main as program
if _rich is None:
    del sys.modules["rich"]
else:
    # A program that has imported rich before imports this module.
    sys.modules["rich"] = _rich


def main() -> None:
    """Runs the command, and exits with its exit code."""
    program(prog_name="store-service")


if __name__ == "__main__":
    main()
