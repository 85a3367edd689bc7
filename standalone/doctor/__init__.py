"""`wharf doctor`: looks at a set-up, a service or a cluster, and says what to do."""
