"""One lane of the torch engine: rows that go through the network together, from prefill to the last item.

Owns: the caches and banned items of a lane's rows, and the items read so far. The rows are sorted by length. Must not
know: threads, the caller's order of rows, NumPy. A lane shares nothing that it writes with another lane.

Rows are divided into groups of similar length that share a cache, so that there is next to no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genrec_batch.core.arrays import FIRST_ITEM, HEADS, PADDING
from genrec_batch.engines.torch.cache import Cache, Held, lanes
from genrec_batch.engines.torch.choice import Choice, RowMasks, log_probs
from genrec_batch.engines.torch.linear import Linear
from genrec_batch.engines.torch.network import FUSED_FROM, Network
from genrec_batch.engines.torch.phases import Phases, items


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of similar length: their place in the lane, their lengths, and their cache."""

    rows: slice
    lengths_R: Tensor
    cache: Cache


@dataclass(kw_only=True)
class Lane:
    """B rows between prefill and the last item, sorted by length."""

    lengths_B: Tensor
    groups: list[Group]
    steps: int
    choices: int
    banned_BX: Tensor  # padding, unknown and seen items, then the items read
    masks: RowMasks | None  # further items that must not be chosen
    start: Choice  # right after the history
    next: Choice | None  # None once there is no room for another item
    tokens: list[Tensor] = field(default_factory=list)  # read so far, [B] each
    log_probs: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)

    def held(self, row: int) -> Held:
        """Return copies of the keys and values of one row's history."""
        group = next(group for group in self.groups if group.rows.start <= row < group.rows.stop)
        return group.cache.held(row - group.rows.start, int(self.lengths_B[row]) + 1)

    def take(self, rows_R: Tensor) -> Lane:
        """Return a lane that holds copies of these rows, given in rising order; a row may be taken many times."""
        groups, first = [], 0
        for group in self.groups:
            inside_R = rows_R[(rows_R >= group.rows.start) & (rows_R < group.rows.stop)] - group.rows.start
            if len(inside_R):
                rows = slice(first, first + len(inside_R))
                groups.append(Group(rows=rows, lengths_R=group.lengths_R[inside_R], cache=group.cache.take(inside_R)))
                first = rows.stop
        start = self.start.take(rows_R)
        return replace(
            self,
            lengths_B=self.lengths_B[rows_R],
            groups=groups,
            banned_BX=self.banned_BX[rows_R],
            masks=None if self.masks is None else self.masks.take(rows_R),
            start=start,
            next=start if self.next is self.start else self.next and self.next.take(rows_R),
            tokens=[tokens_B[rows_R] for tokens_B in self.tokens],
            log_probs=[log_prob_B[rows_R] for log_prob_B in self.log_probs],
            heads=[heads_BH[rows_R] for heads_BH in self.heads],
        )


@dataclass(frozen=True, kw_only=True)
class LaneModel:
    """The network as a device computes it, and how much of a lane it computes at once."""

    network: Network
    phases: Phases
    sources: Mapping[str, tuple[Linear, str]]  # of position 0: by an input's name, its product and its flag's name
    heads: Linear  # padded with zeros to a whole vector: the result of fewer outputs depends on the number of rows
    tokens: int  # tokens from here on are never chosen
    group_rows: int  # rows that share a cache
    context_positions: int  # positions of one pass over the context
    aside_positions: int  # items of one pass that reads each of them alone

    @staticmethod
    def of(
        network: Network, phases: Phases, *, tokens: int, group_rows: int, context_positions: int, aside_positions: int
    ) -> LaneModel:
        """Prepare the products that belong to no phase, in fp32."""
        heads = [getattr(network, f"{head}_head") for head in HEADS]
        spare = heads[0].weight.new_zeros(lanes(len(heads)) - len(heads), heads[0].in_features)
        sources = {
            "dense_BF": (network.feature_projection, ""),
            "profile_BP": (network.user_profile_projection, "has_profile_B"),
            "video_BV": (network.video_feature_projection, "has_video_B"),
        }
        return LaneModel(
            network=network,
            phases=phases,
            sources={n: (Linear(p.weight, p.bias, torch.float32), flag) for n, (p, flag) in sources.items()},
            heads=Linear(
                torch.cat([*(head.weight for head in heads), spare]),
                torch.cat([*(head.bias for head in heads), spare[:, 0]]),
                torch.float32,
            ),
            tokens=tokens,
            group_rows=group_rows,
            context_positions=context_positions,
            aside_positions=aside_positions,
        )

    def prefill(self, inputs: Mapping[str, Tensor], *, steps: int, choices: int, held: Sequence[Held] = ()) -> Lane:
        """Read features and histories and choose the next items.

        `inputs` has dense_BF, tokens_BS, lengths_B (rising), seen_BX and, where the run has them, profile_BP,
        has_profile_B, video_BV, has_video_B, and bans_MC (the bytes of bit maps) with mask_B. The last rows go on from
        what is held of them; they are sorted by the events to read and then by length.
        """
        prefix_BD = self._prefix(inputs)
        tokens_BS, lengths_B = inputs["tokens_BS"], inputs["lengths_B"]
        groups, new = [], len(lengths_B) - len(held)
        for first in range(0, new, self.group_rows):
            rows = slice(first, min(new, first + self.group_rows))
            groups.append(self._group(prefix_BD[rows], tokens_BS[rows], lengths_B[rows], rows, steps))
        for first in range(new, len(lengths_B), self.group_rows):
            rows = slice(first, min(len(lengths_B), first + self.group_rows))
            mine = held[first - new : rows.stop - new]
            groups.append(self._resumed(mine, tokens_BS[rows], lengths_B[rows], rows, steps))
        last_B = tokens_BS.gather(1, (lengths_B - 1).clamp(min=0)[:, None])[:, 0]
        newest_BD = torch.where((lengths_B > 0)[:, None], items(self.network, last_B, lengths_B), prefix_BD)
        hidden_BD = self.phases.read(newest_BD, [group.cache for group in groups], 0)
        never_B2 = lengths_B.new_tensor([PADDING, FIRST_ITEM - 1]).expand(len(lengths_B), 2)
        banned_BX = torch.cat([never_B2, inputs["seen_BX"]], 1)
        masks, vocabulary = None, self.network.config.vocabulary
        if "bans_MC" in inputs:
            masks = RowMasks.of(inputs["bans_MC"], inputs["mask_B"], vocabulary)
        start = self.phases.choose(hidden_BD, banned_BX, tokens=self.tokens, choices=choices, masks=masks)
        return Lane(
            lengths_B=lengths_B, groups=groups, steps=steps, choices=choices, banned_BX=banned_BX, masks=masks,
            start=start, next=start,
        )  # fmt: skip

    def decode(self, lane: Lane, items_B: Tensor | None) -> None:
        """Read one item per row (None: the best choice), then choose the next.

        Nothing follows the last of the lane's steps, so its logits are left out.
        """
        step = len(lane.tokens)
        assert lane.next is not None, "prefill made room for fewer steps"
        assert step < lane.steps, "prefill made room for fewer steps"
        if items_B is None:
            items_B, log_prob_B = lane.next.tokens_BW[:, 0], lane.next.log_prob_BW[:, 0]
        else:
            log_prob_B = log_probs(lane.next.logits_BV, lane.next.log_sum_B, items_B[:, None])[:, 0]
        x_BD = items(self.network, items_B, lane.lengths_B + step + 1)
        hidden_BD = self.phases.read(x_BD, [group.cache for group in lane.groups], step + 1)
        lane.tokens.append(items_B)
        lane.log_probs.append(log_prob_B)
        lane.heads.append(self._scores(hidden_BD, items_B))
        if step + 1 == lane.steps:
            lane.next = None
            return
        lane.banned_BX = torch.cat([lane.banned_BX, items_B[:, None]], 1)
        lane.next = self.phases.choose(
            hidden_BD, lane.banned_BX, tokens=self.tokens, choices=lane.choices, masks=lane.masks
        )

    def score(self, lane: Lane, items_BC: Tensor) -> Tensor:
        """Return the heads of items, each read alone right after the history, [B, C, H]; 0 for token 0."""
        scores = []
        for group in lane.groups:
            rows = len(group.lengths_R)
            size = max(1, self.aside_positions // max(1, items_BC.shape[1]))
            for first in range(0, rows, size):
                some = slice(first, min(rows, first + size))
                items_RC = items_BC[group.rows][some]
                x_RCD = items(self.network, items_RC, (group.lengths_R[some] + 1)[:, None])
                scores.append(self._scores(self.phases.read_aside(x_RCD, group.cache.view(some)), items_RC))
        return torch.cat(scores)

    def _prefix(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return position 0, [B, D], as `Network.prefix` does, whatever the number of rows."""
        x = self.network.position_embedding.weight[0]
        for name, (product, flag) in self.sources.items():
            if name in inputs:
                x = x + (product(inputs[name]) * inputs[flag][:, None] if flag else product(inputs[name]))
        return x

    def _group(self, prefix_RD: Tensor, tokens_RS: Tensor, lengths_R: Tensor, rows: slice, steps: int) -> Group:
        """Read everything before the newest event of some rows into a new cache, a few rows at a time.

        On a CPU long contexts are read in another way than short ones, so no pass mixes the two.
        """
        longest = int(lengths_R[-1])
        cache = Cache.empty(self.network.config, lengths_R, longest, 1 + steps, self.phases.cache_dtype)
        size = max(1, self.context_positions // max(1, longest))
        short = int((lengths_R <= FUSED_FROM).sum()) if lengths_R.device.type == "cpu" else len(lengths_R)
        starts = [*range(0, short, size), *range(short, len(lengths_R), size)]
        for first, stop in zip(starts, [*starts[1:], len(lengths_R)], strict=True):
            some = slice(first, stop)
            count = int(lengths_R[some.stop - 1])
            filled = cache.view(some)
            if count:
                self.phases.context(prefix_RD[some], tokens_RS[some, : count - 1], filled)
            else:
                filled.clear()
        return Group(rows=rows, lengths_R=lengths_R, cache=cache)

    def _resumed(self, held: Sequence[Held], tokens_RS: Tensor, lengths_R: Tensor, rows: slice, steps: int) -> Group:
        """Put what is held of some rows into a new cache, and read the events behind it, all but the newest."""
        cache = Cache.empty(self.network.config, lengths_R, int(lengths_R.max()), 1 + steps, self.phases.cache_dtype)
        cache.clear()
        for row, of_row in enumerate(held):
            cache.put(row, of_row)
        left_R = lengths_R + 1 - torch.tensor([keys.shape[2] for keys, *_ in held], device=lengths_R.device)
        for back in range(int(left_R.max()) - 1, 0, -1):
            some = slice(int((left_R <= back).sum()), len(held))
            before = cache.view(some)
            position_R = before.lengths_R - back
            token_R = tokens_RS[some].gather(1, position_R[:, None] - 1)[:, 0]
            x_RD = items(self.network, token_R, position_R)
            self.phases.read(x_RD, [replace(before, lengths_R=position_R)], 0)
        return Group(rows=rows, lengths_R=lengths_R, cache=cache)

    def _scores(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the heads of read items, [..., H]; 0 for token 0."""
        raw = self.heads(hidden.flatten(0, -2))[:, : len(HEADS)].view(*tokens.shape, len(HEADS))
        return torch.sigmoid(raw) * (tokens != PADDING)[..., None]
