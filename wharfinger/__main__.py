"""`python -m wharfinger`: the command line, in the Python that runs already."""

from wharfinger.command import main

main()
