"""What is done to an installation rather than served by it."""
