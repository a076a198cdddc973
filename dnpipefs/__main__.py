"""`python -m dnpipefs` is the command `dnpipefs`."""

from dnpipefs.cli import main

main()
