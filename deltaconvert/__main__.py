"""``python -m deltaconvert``: the command line where its script is not on the path."""

from deltaconvert.cli import main

if __name__ == "__main__":
    main()
