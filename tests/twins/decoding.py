"""Every way of decoding in slow, obvious NumPy: full forwards of one row, and a mask over all log-probabilities."""

from __future__ import annotations

import numpy as np

from tests.twins.network import NumpyNetwork


class NumpyDecoding:
    """What a model recommends to one row of a batch; `stop` is the first token that is no item."""

    def __init__(self, model):
        self.network, self.stop = NumpyNetwork(model), model.tokens

    def allowed(self, batch, row):
        """Which tokens may be recommended to a row, [V]."""
        allowed_V = np.zeros(self.network.config.vocabulary, np.bool_)
        allowed_V[2 : self.stop] = True
        allowed_V[batch.seen_BX[row]] = False
        if batch.masks is not None:
            words_W = batch.masks.banned_MW[batch.masks.mask_B[row]].tolist()
            for token in range(len(allowed_V)):
                allowed_V[token] &= not words_W[token // 32] >> token % 32 & 1
        return allowed_V

    def after(self, batch, row, items):
        """Log-probabilities [V] and heads [H] after a row's history and some items."""
        inputs = self.network.row(batch, row)
        hidden_D = self.network.hidden(**inputs | {"tokens": [*inputs["tokens"], *items]})
        return self.network.log_probs(hidden_D), self.network.heads(hidden_D)

    def best(self, batch, row, items, count):
        """The best items of the next position, best first, at most `count`, and their log-probabilities."""
        left_V, log_probs_V = self.allowed(batch, row), self.after(batch, row, items)[0]
        left_V[list(items)] = False
        tokens = sorted(np.flatnonzero(left_V).tolist(), key=lambda token: (-log_probs_V[token], token))[:count]
        return tokens, log_probs_V[tokens].tolist()

    def slate(self, batch, row, steps):
        """The greedy list: tokens, log-probabilities and heads, as long as there are items."""
        return self.listed(batch, row, self.beam(batch, row, steps, 1))

    def listed(self, batch, row, items):
        """A list as `(tokens, log-probabilities, heads)`, each item read after those before it."""
        log_prob = [self.after(batch, row, items[:k])[0][item] for k, item in enumerate(items)]
        return items, log_prob, [self.after(batch, row, items[: k + 1])[1] for k in range(len(items))]

    def alone(self, batch, row, items):
        """Items as `(tokens, log-probabilities, heads)`, each read alone right after the history."""
        log_probs_V = self.after(batch, row, [])[0]
        return items, log_probs_V[items].tolist(), [self.after(batch, row, [item])[1] for item in items]

    def candidates(self, batch, row, count):
        """The best items after the history, each scored alone."""
        return self.alone(batch, row, self.best(batch, row, [], count)[0])

    def given(self, batch, row):
        """The given candidates that may be recommended, in their order, each scored alone."""
        allowed_V = self.allowed(batch, row)
        return self.alone(batch, row, [t for t in dict.fromkeys(batch.candidates_BC[row].tolist()) if allowed_V[t]])

    def beam(self, batch, row, steps, width):
        """The list of the greatest total among `width` hypotheses, of which one is always the greedy list."""
        kept, greedy = [(0.0, [])], 0  # totals with lists, best first, and the place of the greedy list
        for _ in range(steps):
            grown = []
            for number, (total, items) in enumerate(kept):
                tokens, log_prob = self.best(batch, row, items, width)
                if not tokens:
                    grown.append((total, items, number == greedy))
                grown += [
                    (total + gain, [*items, token], number == greedy and not place)
                    for place, (token, gain) in enumerate(zip(tokens, log_prob, strict=True))
                ]
            grown.sort(key=lambda one: -one[0])
            chosen = grown[:width]
            if not any(one[2] for one in chosen):
                chosen[-1] = next(one for one in grown if one[2])
            kept, greedy = [one[:2] for one in chosen], next(n for n, one in enumerate(chosen) if one[2])
        return kept[0][1]
