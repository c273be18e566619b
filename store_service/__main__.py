"""`python -m store_service` is the command `store-service`."""

from store_service.cli import main

main(prog_name="store-service")
