"""The commands of `wharf`, a module a noun. Tables and documents go to stdout, progress and messages to stderr."""
