"""`python -m storeapi` is the command `storeapi`."""

from storeapi.cli import main

if __name__ == "__main__":
    main()
