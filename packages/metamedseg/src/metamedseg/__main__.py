"""`python -m metamedseg`."""

from metamedseg.cli import main

if __name__ == "__main__":  # processes that train tasks import this file under another name
    main()
