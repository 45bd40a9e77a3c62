"""`python -m assistant_axis` is the command line."""

from assistant_axis.cli.main import main

if __name__ == "__main__":
    main()
