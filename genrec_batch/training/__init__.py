"""Training: from a log to a model directory that ranks better than popularity."""
