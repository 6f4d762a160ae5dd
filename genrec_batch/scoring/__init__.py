"""The job: a log in, recommendations out."""
