"""The model in slow, obvious NumPy: one row at a time, a full forward in float64 for every result, no cache."""

from __future__ import annotations

import math

import numpy as np

from genrec_batch.core.arrays import HEADS


class NumpyNetwork:
    def __init__(self, model):
        self.config = model.config
        self.weights = {name: weight.astype(np.float64) for name, weight in model.weights.items()}

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, x, name):
        packed = x @ self.weights[f"{name}.in_proj_weight"].T + self.weights[f"{name}.in_proj_bias"]
        heads = []
        for head in range(self.config.heads):
            size = self.config.head_size
            query, key, value = (part[:, head * size : (head + 1) * size] for part in np.split(packed, 3, axis=1))
            scores = query @ key.T / math.sqrt(size)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ value)
        return self.linear(np.concatenate(heads, axis=1), f"{name}.out_proj")

    def hidden(self, dense, tokens, profile=None, video=None):
        """The hidden state of the last position, [D], of a history without padding."""
        x = self.linear(dense.astype(np.float64), "feature_projection")
        if profile is not None:
            x = x + self.linear(profile.astype(np.float64), "user_profile_projection")
        if video is not None:
            x = x + self.linear(video.astype(np.float64), "video_feature_projection")
        x = np.concatenate([x[None], self.weights["token_embedding.weight"][np.asarray(tokens, int)]])
        x = x + self.weights["position_embedding.weight"][: len(x)]
        for layer in range(self.config.layers):
            name = f"encoder.layers.{layer}"
            x = self.norm(x + self.attention(x, f"{name}.self_attn"), f"{name}.norm1")
            inner = np.maximum(self.linear(x, f"{name}.linear1"), 0)
            x = self.norm(x + self.linear(inner, f"{name}.linear2"), f"{name}.norm2")
        return x[-1]

    def log_probs(self, hidden):
        """Log-softmax over the whole vocabulary, [V]."""
        logits = self.linear(hidden, "output_projection")
        top = logits.max()
        return logits - top - math.log(np.exp(logits - top).sum())

    def heads(self, hidden):
        return np.array([1 / (1 + math.exp(-float(self.linear(hidden, f"{head}_head")[0]))) for head in HEADS])

    def row(self, batch, i):
        """The arguments of `hidden` for one row of a batch, its history without padding."""
        has_profile = batch.has_profile_B is not None and batch.has_profile_B[i]
        has_video = batch.has_video_B is not None and batch.has_video_B[i]
        return {
            "dense": batch.dense_BF[i],
            "tokens": batch.tokens_BS[i, : batch.lengths_B[i]].tolist(),
            "profile": batch.profile_BP[i] if has_profile else None,
            "video": batch.video_BV[i] if has_video else None,
        }

    def slate(self, batch, i, steps, stop):
        """Greedy decoding of one row by full forwards: tokens [K], log-probabilities [K], heads [K, H]."""
        row = self.row(batch, i)
        history, chosen, found = row.pop("tokens"), [], []
        banned = {0, 1} | set(batch.seen_BX[i].tolist())
        for _ in range(steps):
            log_probs = self.log_probs(self.hidden(tokens=history + chosen, **row))
            left = [token for token in range(stop) if token not in banned | set(chosen)]
            if not left:
                found.append((0, -np.inf, np.zeros(len(HEADS))))
                continue
            token = max(left, key=lambda token, values=log_probs: (values[token], -token))
            chosen.append(token)
            found.append((token, log_probs[token], self.heads(self.hidden(tokens=history + chosen, **row))))
        tokens, log_prob, heads = zip(*found, strict=True)
        return np.array(tokens), np.array(log_prob), np.array(heads)
