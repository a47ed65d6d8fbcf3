"""`python -m divse.cli` is `divse-search`."""

from divse.cli.app import main

if __name__ == "__main__":
    main()
