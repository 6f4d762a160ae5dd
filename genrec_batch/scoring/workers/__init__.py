"""Several processes score the users of one run: a coordinator hands out parts, workers write them."""
