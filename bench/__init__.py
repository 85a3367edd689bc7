"""What Wharfinger costs, measured beside the bare thing that it wraps. `python -m bench`; see README.md here."""
