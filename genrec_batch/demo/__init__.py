"""The demo, and synthetic logs."""
