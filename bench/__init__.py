"""What Wharfinger costs, measured beside the bare thing that it wraps, and beside its peers. `python -m bench`; see
README.md here."""
