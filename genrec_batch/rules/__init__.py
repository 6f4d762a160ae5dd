"""Rules: which videos may be recommended, and how a list is composed of those that were scored."""
