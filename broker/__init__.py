"""The HTTP side: it parses, authenticates and answers. What must hold lives in `custody`."""
