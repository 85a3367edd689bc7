"""`wharf cleanup`: what has expired leaves, and nothing that somebody still refers to."""
