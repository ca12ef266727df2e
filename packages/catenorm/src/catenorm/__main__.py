"""`python -m catenorm`."""

from catenorm.cli import main

main()
