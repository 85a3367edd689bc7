"""`wharf plan`: what a load asks for, computed from what we have measured."""
