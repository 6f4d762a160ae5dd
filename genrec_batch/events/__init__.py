"""A log, its users and their histories."""
