"""Validation: how well a model ranks, and predicts, what users did after a cut.

Owns: the held-out rows, their measures, the choice of the decode mode, the calibration of heads. Must not know: how the
weights came about, files. In: histories at cuts as `score` builds them, and the events after. Out: figures.

Shapes besides those of `core.arrays`: A amounts of a correction that are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec_batch.core.arrays import F32, F64, FIRST_ITEM, HEADS, I32, I64, Batch, Ragged
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.feed import batch_rows
from genrec_batch.engines.parity import best
from genrec_batch.engines.protocol import Engine, SteppedEngine
from genrec_batch.events import splits
from genrec_batch.events.splits import Cuts
from genrec_batch.features.batches import ModelInputs
from genrec_batch.model.weights import ModelConfig
from genrec_batch.training.inputs import Events, Standard
from genrec_batch.training.network import OUTPUT_BIAS, TOKENS, Noise, Parameters, Read, hidden

MOST_ROWS, ROWS_AT_ONCE = 4096, 256
SEEN_LIMIT, TOP, NEXT = 1000, 10, 10  # as in `score`; places of a list, and events after the cut that it is judged by
FAR = np.int64(1 << 40)  # the rank of what cannot be recommended
SIGNIFICANT = 1.0  # standard errors by which a change must help to be made


@dataclass(frozen=True, kw_only=True)
class Lists:
    """How good each row's list is: whether it holds the next video, how far up, and how much of the next ones."""

    hit_N: F64
    gain_N: F64
    recall_N: F64

    def figures(self) -> dict[str, float]:
        """Return the means."""
        means = {"hr@10": self.hit_N, "ndcg@10": self.gain_N, "recall@10": self.recall_N}
        return {name: float(each_N.mean()) for name, each_N in means.items()}

    def worth(self, *, several: bool) -> float:
        """Return how good they are: by the next video, and by the next ten where there are `several`."""
        return float(self.gain_N.mean() * (self.recall_N.mean() if several else 1.0))

    def more_than(self, other: Lists, *, several: bool) -> F64:
        """Return of each row, of the same rows in both, what it adds to how much more these are worth on average."""
        more_N: F64 = self.gain_N - other.gain_N
        if several:
            recall, gains = (self.recall_N + other.recall_N).mean() / 2, (self.gain_N + other.gain_N).mean() / 2
            more_N = more_N * recall + (self.recall_N - other.recall_N) * gains
        return more_N

    def better_than(self, other: Lists, *, several: bool) -> bool:
        """Return whether these are worth more than others, by more than the standard error of that."""
        return significant(self.more_than(other, several=several))


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out rows: histories at cuts, the video after each, and the events after it with their labels."""

    inputs: ModelInputs  # candidates are the next events' videos
    target_N: I32  # token of the next event
    repeated_N: F32  # the next event's video was seen before the cut: 1 or 0
    labels_NCH: F32  # of the candidates, NaN where there is none
    next_tokens: Ragged  # of the next events
    include_seen: bool

    def __len__(self) -> int:
        return len(self.target_N)

    @staticmethod
    def of(events: Events, cuts: Cuts, seed: int) -> Validation:
        """Take the events after some cuts, of at most MOST_ROWS users; `events` are those of the whole log."""
        if len(cuts) > MOST_ROWS:
            random = np.random.default_rng(seed)
            cuts = cuts.take(np.sort(random.permutation(len(cuts))[:MOST_ROWS]))
        whole = events.whole
        histories = splits.histories_at(whole, cuts, max_events=events.window.history, seen_limit=SEEN_LIMIT)
        vectors = events.vectors(cuts)
        stop_N = np.minimum(cuts.stop_N, cuts.place_N + NEXT)
        next_tokens = _ragged(whole.tokens_E, *splits.places(cuts.place_N, stop_N - cuts.place_N), len(cuts))
        candidates, labels_NCH = _exposures(events, cuts.place_N, stop_N)
        return Validation(
            inputs=ModelInputs(
                histories=histories,
                dense_NF=vectors.dense_KF,
                profile=vectors.profile,
                video=vectors.video,
                candidates=candidates,
                include_seen=events.include_seen,
            ),
            target_N=whole.tokens_E[cuts.place_N],
            repeated_N=events.repeated_E[cuts.place_N].astype(np.float32),
            labels_NCH=labels_NCH,
            next_tokens=next_tokens,
            include_seen=events.include_seen,
        )

    def ranks(
        self,
        weights: Parameters,
        config: ModelConfig,
        standard: Standard,
        items: int,
        corrections: Sequence[F32 | None] = (None,),
    ) -> tuple[I64, float]:
        """Return the rank of each row's next video from 0, [A, N], under some corrections of the output bias.

        What cannot be recommended has the rank FAR. Also the mean cross-entropy of the first.
        """
        ranks_AN = np.full((len(corrections), len(self)), FAR)
        losses: list[F32] = []
        device = weights[TOKENS].device
        added = [None if c is None else torch.from_numpy(c).to(device) for c in corrections]
        with torch.no_grad():
            for rows_B, logits_BC in self._logits(weights, config, standard, items):
                known_B = self.target_N[rows_B] >= FIRST_ITEM
                fair_B = known_B if self.include_seen else known_B & (self.repeated_N[rows_B] == 0)
                kept = torch.from_numpy(np.flatnonzero(fair_B)).to(device)
                target_B1 = torch.from_numpy(self.target_N[rows_B[fair_B], None] - FIRST_ITEM).long().to(device)
                fair_BC = logits_BC.index_select(0, kept)
                for place, correction in enumerate(added):
                    corrected_BC = fair_BC if correction is None else fair_BC + correction
                    above_B = (corrected_BC > corrected_BC.gather(1, target_B1)).sum(1)
                    ranks_AN[place, rows_B[fair_B]] = above_B.cpu().numpy()
                loss_B = torch.logsumexp(fair_BC, 1) - fair_BC.gather(1, target_B1)[:, 0]
                losses.append(loss_B.cpu().numpy())
        loss = np.concatenate(losses)
        return ranks_AN, float(loss.mean()) if len(loss) else float("nan")

    def _logits(
        self, weights: Parameters, config: ModelConfig, standard: Standard, items: int
    ) -> Iterator[tuple[I64, Tensor]]:
        """Yield rows of like length and their logits over the catalog, seen videos at -inf."""
        catalog, device = slice(FIRST_ITEM, FIRST_ITEM + items), weights[TOKENS].device
        for rows_B in batch_rows(self.inputs.histories.lengths_N, ROWS_AT_ONCE):
            batch = replace(self.inputs, candidates=None).batch(rows_B)
            hidden_BD = hidden(weights, config, _read(batch, standard, device), torch.float32, Noise(0))
            logits_BC = hidden_BD @ weights[TOKENS][catalog].T + weights[OUTPUT_BIAS][catalog]
            seen_BX = torch.from_numpy(batch.seen_BX.astype(np.int64)).to(device) - FIRST_ITEM
            row, place = torch.nonzero(seen_BX >= 0, as_tuple=True)
            logits_BC[row, seen_BX[row, place]] = -torch.inf
            yield rows_B, logits_BC

    def decoding(self, engine: Engine, items: int) -> dict[str, Lists]:
        """Return how well the lists of each mode hold the next video and the next ones."""
        inputs = replace(self.inputs, candidates=None)
        found: dict[str, Lists] = {}
        for mode in ("candidates", "slate"):
            tokens_NK = np.zeros((len(self), TOP), np.int32)
            spans = batch_rows(inputs.histories.lengths_N, ROWS_AT_ONCE)
            decoding = Decoding(mode=mode, top_k=TOP, num_candidates=min(TOP, items))
            for rows_B, ranked in zip(spans, recommend_all(engine, map(inputs.batch, spans), decoding), strict=True):
                tokens_BK = best(ranked, TOP).tokens_BK
                tokens_NK[rows_B, : tokens_BK.shape[1]] = tokens_BK
            found[mode] = _of_lists(tokens_NK, self.target_N, self.next_tokens)
        return found

    def probabilities(self, engine: SteppedEngine) -> F32:
        """Return what the heads predict of the candidates, each read alone right after the history, [N, C, H]."""
        heads_NCH = np.zeros(self.labels_NCH.shape, np.float32)
        for rows_B in batch_rows(self.inputs.histories.lengths_N, ROWS_AT_ONCE):
            batch = self.inputs.batch(rows_B)
            assert batch.candidates_BC is not None
            state = engine.prefill(replace(batch, candidates_BC=None), steps=1)
            heads_NCH[rows_B, : batch.candidates_BC.shape[1]] = engine.score(state, batch.candidates_BC)
        return heads_NCH


def _read(batch: Batch, standard: Standard, device: torch.device) -> Read:
    """Return a batch of `score` as the training network reads it; its last position is wanted."""

    def put(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    rows, width = batch.tokens_BS.shape
    profile, video = (
        None if vectors is None or has is None else (put(vectors), put(has))
        for vectors, has in ((batch.profile_BP, batch.has_profile_B), (batch.video_BV, batch.has_video_B))
    )
    return Read(
        tokens_BS=put(batch.tokens_BS.astype(np.int64)),
        rows_K=torch.arange(rows, device=device),
        dense_KF=put(standard.apply(batch.dense_BF)),
        profile=profile,
        video=video,
        wanted_W=put(np.arange(rows) * (width + 1) + batch.lengths_B),
    )


def _exposures(events: Events, place_N: I64, stop_N: I64) -> tuple[Ragged, F32]:
    """Return the distinct known videos of the next events as candidates, with the labels of their first event."""
    event_E, row_E = splits.places(place_N, stop_N - place_N)
    token_E = events.whole.tokens_E[event_E]
    _, first = np.unique(row_E << 32 | token_E, return_index=True)
    first = np.sort(first[token_E[first] >= FIRST_ITEM])
    candidates = _ragged(token_E, first, row_E[first], len(place_N))
    width = max(1, int(candidates.lengths_N.max(initial=0)))
    labels_NCH = np.full((len(place_N), width, len(HEADS)), np.nan, np.float32)
    column = np.arange(len(first)) - candidates.offsets_N1[row_E[first]]
    labels_NCH[row_E[first], column] = events.labels_EH[event_E[first]]
    return candidates, labels_NCH


def _ragged(values_E: I32, place_E: I64, row_E: I64, rows: int) -> Ragged:
    offsets_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row_E, minlength=rows))])
    return Ragged(offsets_N1=offsets_N1, values=values_E[place_E])


def gain(ranks: I64, top: int | None = TOP) -> F64:
    """Return the discounted gain of each rank, 1 for the first place; 0 beyond `top` places."""
    gains: F64 = 1 / np.log2(np.minimum(ranks, FAR).astype(np.float64) + 2)
    return np.where(ranks < (FAR if top is None else top), gains, 0.0)


def _of_lists(tokens_NK: I32, target_N: I32, following: Ragged) -> Lists:
    """Return how good lists are; `following` are the next videos."""
    hit_NK = (tokens_NK == target_N[:, None]) & (target_N[:, None] >= FIRST_ITEM)
    gains_N = (hit_NK * gain(np.arange(tokens_NK.shape[1]))).sum(1)
    row = np.repeat(np.arange(len(target_N)), following.lengths_N)
    held = (tokens_NK[row] == following.values[:, None]).any(1) & (following.values >= FIRST_ITEM)
    recall_N = np.bincount(row, held, len(target_N)) / following.lengths_N
    return Lists(hit_N=hit_NK.any(1).astype(np.float64), gain_N=gains_N, recall_N=recall_N)


def better_mode(found: Mapping[str, Lists], *, several: bool) -> str:
    """Return the mode that ranks better."""
    better = found["slate"].worth(several=several) > found["candidates"].worth(several=several)
    return "slate" if better else "candidates"


def helpful(ranks_AN: I64) -> int:
    """Return which correction ranks best, 0 (none) unless another gains more than its standard error."""
    gains_AN = gain(ranks_AN, None)
    place = int(gains_AN.mean(1).argmax())
    return place if significant(gains_AN[place] - gains_AN[0]) else 0


def significant(more_N: F64) -> bool:
    """Return whether a change that gains so much in each row gains more than its standard error."""
    return bool(more_N.mean() > SIGNIFICANT * more_N.std() / np.sqrt(max(1, len(more_N))))
