"""The command `store-service`; also `python -m store_service`."""

from store_service import gc_tuning

with gc_tuning.paused_during_imports():
    from store_service.cli import main as program


def main() -> None:
    """Runs the command, and exits with its exit code."""
    program(prog_name="store-service")


if __name__ == "__main__":
    main()
