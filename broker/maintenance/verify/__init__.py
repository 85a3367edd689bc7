"""`wharf verify`: reads what the volume keeps, and says what was damaged or lost."""
