"""Everything on one machine: the embedded PostgreSQL, the supervisor of the other processes, and the commands for
whoever looks after an installation."""
