"""`wharf migrate`: database and volume brought to the present shape."""
