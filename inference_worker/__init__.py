"""The model side: it claims tasks, reads files in place, and stores what the model saw."""
