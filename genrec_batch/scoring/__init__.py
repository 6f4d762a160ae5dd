"""Scoring: a log in, recommendations out."""
