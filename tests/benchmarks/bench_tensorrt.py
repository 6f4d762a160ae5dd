"""Users per second of the TensorRT engine on a GPU, and how well it agrees with fp32.

    python tests/benchmarks/bench_tensorrt.py reference --out ref.npz          (torch, fp32, no cache)
    python tests/benchmarks/bench_tensorrt.py run --reference ref.npz --json out.json [--plain] [--lengths 5 50]

Device-resident figures are medians of replayed CUDA graphs between events; `slate` is the engine's public iterator,
from host batches to host results. Prints the floor first and one JSON object last.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from genrec_batch.core.arrays import HEADS, Batch
from genrec_batch.model.weights import DEMO_SEED, ModelConfig, demo_model, initial_weights, preset

STEPS, WIDTH = 10, 50
# Least time per user on an H200 with 790 TFLOP/s of dense fp16 and 4.27 TB/s, both measured there: prefill is 1.311
# GFLOP; a decode pass reads the keys and values of its history once.
FLOOR_US, PREFILL_FLOOR_US = 3.49, 1.75


def sizes(layers=None) -> ModelConfig:
    """The reference model, with fewer layers where a form is only tried out."""
    return replace(preset("reference"), layers=layers or preset("reference").layers)


def inputs(rows, lengths, seed=1):
    """The same random users under every Python, whatever their number; what was watched is not recommended."""
    config, parts = preset("reference"), []
    for start in range(0, rows, 256):
        random = np.random.Generator(np.random.Philox([seed, start]))
        length_B = random.integers(lengths[0], lengths[1] + 1, 256).astype(np.int32)
        tokens_BS = random.integers(2, config.vocabulary, (256, WIDTH)).astype(np.int32)
        tokens_BS[np.arange(WIDTH)[None] >= length_B[:, None]] = 0
        parts.append((random.standard_normal((256, config.features), np.float32), tokens_BS, length_B))
    dense_BF, tokens_BS, length_B = (np.concatenate(part)[:rows] for part in zip(*parts, strict=True))
    return Batch(dense_BF=dense_BF, tokens_BS=tokens_BS, lengths_B=length_B, seen_BX=tokens_BS)


def reference(arguments):
    """Greedy decode in fp32 by a whole forward per step, no cache, in torch."""
    import torch
    from torch.nn import functional as F  # noqa: N812 (torch's own habit)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    config = sizes(arguments.layers)
    w = {k: torch.from_numpy(v).to(device) for k, v in initial_weights(config, DEMO_SEED).items()}
    batch = inputs(arguments.rows, arguments.lengths)
    length = torch.from_numpy(batch.lengths_B).long().to(device)
    tokens = torch.from_numpy(batch.tokens_BS).long().to(device)
    tokens = F.pad(tokens, (0, STEPS))
    prefix = F.linear(
        torch.from_numpy(batch.dense_BF).to(device), w["feature_projection.weight"], w["feature_projection.bias"]
    )
    rows = torch.arange(len(batch), device=device)
    banned = torch.zeros(len(batch), config.vocabulary, dtype=torch.bool, device=device)
    banned.scatter_(1, tokens, True)
    banned[:, :2] = True
    found = {"tokens": [], "log_prob": [], "heads": []}
    for step in range(STEPS + 1):
        x = torch.cat([prefix[:, None], w["token_embedding.weight"][tokens]], 1)
        x = x + w["position_embedding.weight"][: x.shape[1]]
        for layer in range(config.layers):
            p = f"encoder.layers.{layer}."
            qkv = F.linear(x, w[p + "self_attn.in_proj_weight"], w[p + "self_attn.in_proj_bias"])
            q, k, v = qkv.view(*x.shape[:2], 3, config.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            mean = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
            y = F.linear(mean, w[p + "self_attn.out_proj.weight"], w[p + "self_attn.out_proj.bias"])
            x = F.layer_norm(x + y, x.shape[-1:], w[p + "norm1.weight"], w[p + "norm1.bias"])
            y = F.linear(x, w[p + "linear1.weight"], w[p + "linear1.bias"]).relu()
            y = F.linear(y, w[p + "linear2.weight"], w[p + "linear2.bias"])
            x = F.layer_norm(x + y, x.shape[-1:], w[p + "norm2.weight"], w[p + "norm2.bias"])
        hidden = x[rows, length + step]
        if step:
            heads = [F.linear(hidden, w[f"{head}_head.weight"], w[f"{head}_head.bias"])[:, 0] for head in HEADS]
            found["heads"].append(torch.sigmoid(torch.stack(heads, 1)))
        if step < STEPS:
            logits = F.linear(hidden, w["output_projection.weight"], w["output_projection.bias"])
            best, item = logits.masked_fill(banned, -torch.inf).max(1)
            found["tokens"].append(item.int())
            found["log_prob"].append(best - logits.logsumexp(1))
            banned.scatter_(1, item[:, None], True)
            tokens[rows, length + step] = item
    np.savez(arguments.out, **{k: torch.stack(v, 1).cpu().numpy() for k, v in found.items()})
    print(f"reference: {len(batch)} users on {device}, torch {torch.__version__}")


def agreement(ranked, path):
    """Top-1 agreement per step among rows whose earlier items all agree, and the largest differences there."""
    stored = np.load(path)
    rows = min(len(stored["tokens"]), len(ranked))
    mine = {"tokens": ranked.tokens_BK[:rows], "log_prob": ranked.log_prob_BK[:rows], "heads": ranked.heads_BKH[:rows]}
    same = np.ones(rows, bool)
    agreed = asked = 0
    gap = {"log_prob": 0.0, "heads": 0.0}
    for step in range(STEPS):
        asked += int(same.sum())
        gap["log_prob"] = max(
            gap["log_prob"],
            float(np.abs(mine["log_prob"][same, step] - stored["log_prob"][:rows][same, step]).max(initial=0)),
        )
        same &= mine["tokens"][:, step] == stored["tokens"][:rows, step]
        agreed += int(same.sum())
        difference = np.abs(mine["heads"][same, step] - stored["heads"][:rows][same, step])
        gap["heads"] = max(gap["heads"], float(difference.max(initial=0)))
    overlap = [len(set(a) & set(b)) / STEPS for a, b in zip(mine["tokens"], stored["tokens"][:rows], strict=True)]
    return {
        "rows": rows,
        "first_item": round(float((mine["tokens"][:, 0] == stored["tokens"][:rows, 0]).mean()), 4),
        "per_step": round(agreed / asked, 4),
        "overlap_at_10": round(float(np.mean(overlap)), 4),
        "max_log_prob_difference": round(gap["log_prob"], 5),
        "max_head_difference": round(gap["heads"], 5),
    }


def timed(gpu, stream, work, repeats):
    """Median milliseconds of `work` between events, after three warm-ups."""
    from genrec_batch.engines.driver import Event

    start, stop = Event(gpu, timed=True), Event(gpu, timed=True)
    found = []
    for turn in range(repeats + 3):
        stream.record(start)
        work()
        stream.record(stop)
        stop.synchronize()
        if turn >= 3:
            found.append(start.elapsed_time(stop))
    return statistics.median(found)


def profile(engine, program, slot, top):
    """Time of every layer of prefill and of the last decode step, as the library tells it (which slows it down)."""
    api, stream, found = engine.library.api, engine._compute, {}

    class Layers(api.IProfiler):
        def __init__(self):
            api.IProfiler.__init__(self)
            self.ms = {}

        def report_layer_time(self, layer_name, ms):
            self.ms[layer_name] = ms

    for name, work in (
        ("prefill", lambda: program.prefill(slot, stream)),
        ("decode", lambda: program.decode(slot, STEPS - 1, stream)),
    ):
        layers = Layers()
        for title in program.network.titles(name):
            context = program.executable(title, bytes).context
            context.profiler, context.enqueue_emits_profile = layers, True
        for _ in range(4):
            work()
            stream.synchronize()
        total = sum(layers.ms.values())
        slowest = sorted(layers.ms.items(), key=lambda item: -item[1])
        found[name] = {"total_ms": round(total, 3), "layers": [(n[-90:], round(ms, 4)) for n, ms in slowest[:top]]}
        print(f"{name}: {total:.3f} ms in {len(layers.ms)} layers")
        for layer, ms in found[name]["layers"]:
            print(f"  {ms:8.4f} ms  {layer}")
    return found


def run(arguments):
    """Build or load the engines, check them, time them."""
    from genrec_batch.engines.plan_cache import EngineCache
    from genrec_batch.engines.tensorrt.engine import TensorRtEngine
    from genrec_batch.engines.tensorrt.plugin import library

    if arguments.plain:
        os.environ.pop(library.VARIABLE, None)
    print(f"floor: {1e6 / FLOOR_US:,.0f} users/s, prefill alone {1e6 / PREFILL_FLOOR_US:,.0f} users/s")
    builds, phase = {}, {}

    def progress(name, share):
        phase[name] = share
        print(f"  {time.monotonic() - started:6.1f}s {name}", flush=True)

    started = time.monotonic()
    cache = EngineCache(Path(arguments.cache or tempfile.mkdtemp()))
    engine = TensorRtEngine(
        demo_model(sizes(arguments.layers)),
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        cache=cache,
        progress=progress,
    )
    print(f"{engine.library.label}, {engine._gpu.architecture}, {engine.variant}")
    batch = inputs(arguments.batch_size, arguments.lengths)
    engine.expect(longest=WIDTH, mean=float(batch.lengths_B.mean()) + 1, steps=STEPS)
    program, slot = engine._ready(batch, STEPS)
    builds["prepare_s"] = round(time.monotonic() - started, 1)
    print(f"engines ready after {builds['prepare_s']} s, {program.shape}")
    stream, gpu = engine._compute, engine._gpu
    slot.fill(batch)
    stream.copy_in(slot.device_in.address, slot.host_in, slot.filled)
    graphs = program.graphs(slot, STEPS, stream)

    def replay():
        for graph in graphs:
            graph.launch(stream)

    def answer():
        replay()
        engine._copy_results(slot)
        return slot.ranked(len(batch), STEPS)

    first, same = answer(), True
    for _ in range(10):
        same &= bool((answer().tokens_BK == first.tokens_BK).all())
    whole = timed(gpu, stream, replay, arguments.repeats)
    parts = [timed(gpu, stream, lambda g=part: g.launch(stream), arguments.repeats) for part in graphs]
    again = timed(gpu, stream, replay, arguments.repeats)
    rows = arguments.batch_size
    batches = [inputs(rows, arguments.lengths, seed) for seed in range(2, 6)]
    list(engine.slate(batches, STEPS))
    begin = time.monotonic()
    count = sum(len(ranked) for ranked in engine.slate(batches * arguments.turns, STEPS))
    slate_s = time.monotonic() - begin
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "library": engine.library.label,
        "variant": engine.variant,
        "precision": arguments.precision,
        "batch_size": rows,
        "lengths": list(arguments.lengths),
        "positions": int(batch.lengths_B.sum()) + len(batch),
        "places": program.shape.places,
        "steps": STEPS,
        "layers": engine._config.layers,
        "python": platform.python_version(),
        "build_or_load_s": builds["prepare_s"],
        "whole_ms": round(whole, 3),
        "whole_again_ms": round(again, 3),
        "prefill_ms": round(parts[0], 3),
        "decode_ms": round(parts[1], 3),
        "whole_users_per_s": round(rows / whole * 1e3),
        "prefill_users_per_s": round(rows / parts[0] * 1e3),
        "share_of_floor": round(rows / whole * 1e-3 * FLOOR_US, 3),
        "share_of_prefill_floor": round(rows / parts[0] * 1e-3 * PREFILL_FLOOR_US, 3),
        "slate_users_per_s": round(count / slate_s),
        "same_items_over_10_replays": same,
        "agreement": agreement(first, arguments.reference) if arguments.reference else None,
    }
    if arguments.profile:
        found["profile"] = profile(engine, program, slot, arguments.profile)
    print(json.dumps({name: value for name, value in found.items() if name != "profile"}), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    return found


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    ref, bench = commands.add_parser("reference"), commands.add_parser("run")
    for command in (ref, bench):
        command.add_argument("--layers", type=int, help="of the model, fewer to try something out")
        command.add_argument("--lengths", type=int, nargs=2, default=(50, 50), help="shortest and longest history")
    ref.add_argument("--rows", type=int, default=1024)
    ref.add_argument("--out", required=True)
    ref.set_defaults(work=reference)
    bench.add_argument("--batch-size", type=int, default=2048)
    bench.add_argument("--precision", default="fp16")
    bench.add_argument("--plain", action="store_true", help="without the plugin, whatever headers there are")
    bench.add_argument("--cache", help="folder of built engines; a new one by default, so that building is timed")
    bench.add_argument("--reference", help="what `reference` wrote")
    bench.add_argument("--repeats", type=int, default=13)
    bench.add_argument("--turns", type=int, default=10, help="how often slate goes through its four batches")
    bench.add_argument("--profile", type=int, default=0, help="also print so many of the slowest layers")
    bench.add_argument("--json", help="where to write the result")
    bench.set_defaults(work=run)
    arguments = parser.parse_args()
    return arguments.work(arguments)


if __name__ == "__main__":
    main()
