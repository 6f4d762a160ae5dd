"""An engine of which a test writes the methods it needs; any other one that is called fails the test."""

from genrec_batch.engines.protocol import SteppedEngine


def not_part_of_this_test(*_, **__):
    raise AssertionError("the test calls a method that its engine does not have")


class PartialEngine(SteppedEngine):
    """The base class with every abstract method there, and none implemented."""

    prefill = decode = choose = log_probs = score = select = collect = not_part_of_this_test
