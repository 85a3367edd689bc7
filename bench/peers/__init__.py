"""One module a peer: a server with `ENGINES` of our engines behind it, run as `python -m bench.peers.NAME PORT` in an
environment of its own. What it imports is installed there and nowhere else; how it is asked stands in `bench.peer`."""

ENGINES = 2
"""Of each peer, and as many slots of ours: a thread or a process each, with one stream."""
