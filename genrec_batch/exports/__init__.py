"""Finished outputs elsewhere: as texts, or in a team's online store."""
