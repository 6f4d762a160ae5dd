"""How fast a model trains: this package's steps beside a plain tuned PyTorch loop of the same model, in one run.

    python tests/benchmarks/bench_training.py [--device cuda] [--preset reference] [--batch-sizes 64,512] [--steps 20]

Both get sequences of 50 videos, features at position 0, loss at all 50 next videos over the whole vocabulary, dropout,
bf16 products over fp32 weights, clipping and AdamW. The plain loop is what a good engineer writes:
`nn.TransformerEncoder` with its fused attention, autocast, a tied output, fused AdamW; on a GPU also compiled. Steps of
both take turns. `--clock cpu` takes processor time, for a machine that others use too, with `--threads 1`. The ceiling
is a product of the model's own shape, measured first. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from genrec_batch.core.arrays import HEADS
from genrec_batch.model import weights
from genrec_batch.training import network
from genrec_batch.training.device import Place
from genrec_batch.training.inputs import Standard, TrainingBatch, Vectors
from genrec_batch.training.loop import HEADS_WEIGHT, Schedule, Trainer

EVENTS, WARM_UP, TOGETHER = 50, 3, 10
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Plain(nn.Module):
    """The same model as one writes it with `nn.TransformerEncoder`."""

    def __init__(self, config, dropout):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.features = nn.Linear(config.features, config.width)
        layer = nn.TransformerEncoderLayer(config.width, config.heads, config.ffn, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.output_bias = nn.Parameter(torch.zeros(config.vocabulary))
        self.heads = nn.Linear(config.width, len(HEADS))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, dense, tokens, target, labels):
        x = torch.cat([self.features(dense)[:, None], self.tokens(tokens)], 1)
        x = self.dropout(x + self.positions.weight[: x.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        hidden = self.encoder(x, mask, is_causal=True)
        logits = functional.linear(hidden[:, :-1], self.tokens.weight, self.output_bias)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten())
        of_heads = functional.binary_cross_entropy_with_logits(self.heads(hidden[:, 1:]).float(), labels)
        return loss + HEADS_WEIGHT * of_heads


def plain_step(config, dropout, place, lr, *, compiled):
    model = Plain(config, dropout).to(place.device).train()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def step(batch, count):
        for _ in range(count):
            once(batch)

    def once(batch):
        with torch.autocast(place.device.type, torch.bfloat16, enabled=place.precision == "bf16"):
            loss = run(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def our_step(config, dropout, place, lr):
    standard = Standard(
        mean_F=np.zeros(config.features),
        deviation_F=np.ones(config.features),
        scale_F=np.ones(config.features),
        varies_F=np.ones(config.features, np.bool_),
    )
    trainer = Trainer(
        config,
        network.initial(config, 1),
        items=config.vocabulary - 2,
        standard=standard,
        schedule=Schedule(peak=lr, steps=10**6),
        place=place,
        dropout=dropout,
        seed=1,
    )

    def step(batch, count):
        for _ in trainer.train([batch] * count, epoch=0, start=0):
            pass

    return step


def made(config, rows, random):
    """Return a batch as this package's steps read it, and the same as tensors for the plain loop."""
    tokens = random.integers(2, config.vocabulary, (rows, EVENTS))
    dense = random.standard_normal((rows, config.features), np.float32)
    labels = (random.random((rows * EVENTS, len(HEADS))) < 0.2).astype(np.float32)
    state = np.arange(rows * (EVENTS + 1)).reshape(rows, EVENTS + 1)
    ours = TrainingBatch(
        tokens_BS=tokens.astype(np.int32),
        lengths_B=np.full(rows, EVENTS),
        rows_K=np.arange(rows),
        vectors=Vectors(dense_KF=dense, profile=None, video=None),
        place_P=state[:, :-1].ravel(),
        target_P=tokens.ravel() - 2,
        weight_P=np.ones(rows * EVENTS, np.float32),
        seen_M=np.zeros(0, np.int32),
        seen_start_P=np.zeros(rows * EVENTS, np.int64),
        seen_count_P=np.zeros(rows * EVENTS, np.int64),
        place_Q=state[:, 1:].ravel(),
        labels_QH=labels,
    )
    theirs = [dense, tokens, tokens, labels.reshape(rows, EVENTS, -1)]
    return ours, [torch.from_numpy(array) for array in theirs]


def ceiling(config, place, rows, clock):
    """Return TFLOP/s of the feed-forward product of a batch."""
    a = torch.randn(rows * (EVENTS + 1), config.width, dtype=place.dtype, device=place.device)
    b = torch.randn(config.ffn, config.width, dtype=place.dtype, device=place.device)
    times = []
    for _ in range(20):
        place.wait()
        began = clock()
        a @ b.t()
        place.wait()
        times.append(clock() - began)
    return 2 * a.shape[0] * config.width * config.ffn / statistics.median(times) / 1e12


def flops(config):
    """Return the products of a step for one sequence, three times those of the way forward."""
    layer = 4 * config.width**2 + 2 * config.width * config.ffn
    encoder = 2 * config.layers * (layer * (EVENTS + 1) + 2 * (EVENTS + 1) ** 2 * config.width)
    return 3 * (encoder + 2 * config.features * config.width + 2 * config.vocabulary * config.width * EVENTS)


def measured(steps, batches, place, count, clock):
    """Return the median seconds of a step of each kind, kinds taking turns."""
    times = {name: [] for name in steps}
    together = TOGETHER if place.device.type == "cuda" else 1  # a training does not wait after each step either
    for turn in range(count + WARM_UP):
        for name, step in steps.items():
            place.wait()
            began = clock()
            step(batches[name], together)
            place.wait()
            if turn >= WARM_UP:
                times[name].append((clock() - began) / together)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--preset", default="reference")
    parser.add_argument("--batch-sizes", default="64")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--without-plain", action="store_true", help="measure this package's steps only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock = CLOCKS[asked.clock]
    place, config = Place.of(asked.device, asked.precision), weights.preset(asked.preset)
    found = {
        "device": str(place.device),
        "precision": place.precision,
        "preset": asked.preset,
        "torch": torch.__version__,
    }
    gpu = place.device.type == "cuda"
    found["hardware"] = torch.cuda.get_device_name() if gpu else platform.processor()
    found |= {"threads": asked.threads, "clock": asked.clock}
    for rows in map(int, asked.batch_sizes.split(",")):
        top = ceiling(config, place, rows, clock)
        ours, theirs = made(config, rows, np.random.default_rng(1))
        theirs = [tensor.to(place.device) for tensor in theirs]
        steps, batches = {"ours": our_step(config, 0.2, place, 8e-4)}, {"ours": ours}
        if not asked.without_plain:
            steps["plain"], batches["plain"] = plain_step(config, 0.2, place, 8e-4, compiled=False), theirs
            if gpu:
                steps["plain, compiled"] = plain_step(config, 0.2, place, 8e-4, compiled=True)
                batches["plain, compiled"] = theirs
        seconds = measured(steps, batches, place, asked.steps, clock)
        found[f"batch {rows}"] = {
            "ceiling_tflops": round(top, 2),
            **{
                name: {
                    "sequences_per_s": round(rows / each, 1),
                    "step_ms": round(1000 * each, 2),
                    "share_of_ceiling": round(flops(config) * rows / each / 1e12 / top, 3),
                }
                for name, each in seconds.items()
            },
        }
        print(json.dumps({f"batch {rows}": found[f"batch {rows}"]}), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
