"""Quality: rankings and heads compared with what users did next, beside simple baselines."""
