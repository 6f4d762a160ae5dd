"""Prefill and decode, on whatever device there is."""
