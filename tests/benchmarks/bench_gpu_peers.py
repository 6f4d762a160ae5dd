"""Device-resident speed of the hand-fused CUDA engine beside PyTorch as others write it, on one NVIDIA GPU.

    python tests/benchmarks/bench_gpu_peers.py [--users 4096] [--steps 10] [--quick] [--out result.json]
        [--candidates 100]

Prints the card's ceilings, each path's agreement with fp32, then medians of interleaved runs (CUDA events, inputs on
the device, prefill and `--steps` decode passes, all in one CUDA graph where the path allows it), the share of the floor
(arithmetic at the ceiling measured at 790 TFLOP/s), GPU idle time, and the engine's `slate` from host arrays.
`--candidates` adds as many candidates of histories of 50. Weights are the demo rule's. The last line is JSON.
"""

import argparse
import datetime as dt
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import triton

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from gpu_peers import NoCache, Plain, Tuned, graphed

from genrec_batch.core.arrays import Batch
from genrec_batch.engines.cuda.engine import TorchCudaEngine
from genrec_batch.engines.cuda.loop import ban_all, grid, pack
from genrec_batch.model.weights import PRESETS, demo_model
from genrec_batch.runtime.clock import Stages

FLOOR = 287_000  # users/s: 1.311 + 0.361 GFLOP per user of 50 events and 10 steps, at the best rates of the card
SIZES = PRESETS["reference"]
WIDTH = 50
CHECKED = 256
FUSED = {"fused": "fp16", "fused fp16-fast": "fp16-fast", "fused fp8": "fp8"}
RATE = 790e12  # the best rate of the card, of FLOOR
FLOP = {"history of 50": 1.311e9, "candidate": 0.0361e9 - 2 * SIZES.width * SIZES.vocabulary}  # without logits


def drawn(users, shortest, seed=0):
    """Users with shortest..50 events of random items, all distinct from what may be recommended."""
    random = np.random.default_rng([seed, users, shortest])
    lengths = random.integers(shortest, WIDTH + 1, users).astype(np.int32)
    tokens = random.integers(2, SIZES.vocabulary, (users, WIDTH)).astype(np.int32)
    tokens[np.arange(WIDTH) >= lengths[:, None]] = 0
    dense = random.standard_normal((users, SIZES.features), np.float32)
    return Batch(dense_BF=dense, tokens_BS=tokens, lengths_B=lengths, seen_BX=tokens)


def first_users(batch, count):
    return Batch(
        dense_BF=batch.dense_BF[:count],
        tokens_BS=batch.tokens_BS[:count],
        lengths_B=batch.lengths_B[:count],
        seen_BX=batch.seen_BX[:count],
    )


def elapsed_ms(call):
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def interleaved(calls, rounds, warm=3):
    """Median milliseconds of each call, the calls taking turns."""
    for call in calls.values():
        for _ in range(warm):
            call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(elapsed_ms(call))
    return {name: statistics.median(values) for name, values in times.items()}


def ceilings():
    a, b = (torch.randn(8192, 8192, device="cuda").half() for _ in range(2))
    source = torch.randint(0, 255, (1 << 32,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a8, b8, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T, torch.ones((), device="cuda")
    calls = {
        "product": lambda: a @ b,
        "fp8 product": lambda: torch._scaled_mm(a8, b8, one, one, out_dtype=torch.float16, use_fast_accum=True),
        "copy": lambda: target.copy_(source),
    }
    ms = interleaved(calls, 9)
    return {
        "fp16_8192_tflops": round(2 * 8192**3 / ms["product"] / 1e9),
        "fp8_8192_tflops": round(2 * 8192**3 / ms["fp8 product"] / 1e9),
        "copy_tb_per_s": round(2 * source.numel() / ms["copy"] / 1e9, 2),
    }


def agreement(tokens_BK, log_prob_BK, truth):
    """Top-1 agreement per step among users whose earlier items agree, and the largest log-probability difference."""
    expected, expected_log_prob = truth
    same = np.ones(len(expected), bool)
    hits = total = 0
    worst = 0.0
    for k in range(expected.shape[1]):
        total += same.sum()
        equal = same & (tokens_BK[: len(expected), k] == expected[:, k])
        worst = max(worst, np.abs(log_prob_BK[: len(expected), k] - expected_log_prob[:, k])[equal].max(initial=0))
        same, hits = equal, hits + equal.sum()
    return {"agree": round(float(hits / total), 4), "log_prob_diff": round(float(worst), 4)}


def fused(model, batch, steps, precision="fp16", candidates=0):
    """The engine's captured loop on inputs that stay on the device, and its lists once, from the host."""
    engine = TorchCudaEngine(model, precision=precision)
    lists = next(engine.candidates([batch], candidates) if candidates else engine.slate([batch], steps))
    loop = engine._loop
    packed = pack(batch, steps=steps, positions=SIZES.positions, users=grid(len(batch)))
    captured = loop._loop(packed, steps, None, candidates)
    seen = torch.from_numpy(batch.seen_BX).cuda()

    def run():
        ban_all(loop._fused, loop._kernels, {"seen": seen}, captured.banned_BW[: len(batch)])
        captured.prefill()
        captured.decode()

    return engine, lists, run


def candidates(model, options, result):
    """Candidates of histories of 50, of which each is scored alone, in every precision."""
    batch, count = drawn(options.users, WIDTH), options.candidates
    floor = RATE / (FLOP["history of 50"] + count * FLOP["candidate"])
    calls, engines, table = {}, {}, result.setdefault(f"{count} candidates", {"floor_users_per_s": round(floor)})
    with torch.inference_mode():
        for path, precision in FUSED.items():
            engines[path], _, calls[path] = fused(model, batch, 1, precision, count)
        for path, ms in interleaved(calls, 7).items():
            rate = options.users / ms * 1000
            table[path] = {"ms": round(ms, 3), "users_per_s": round(rate), "floor_share": round(rate / floor, 3)}
            table[path]["gpu_idle_share"], table[path]["kernels_ms"] = busy_with(calls[path])
            drawn_batches = [drawn(options.users, WIDTH, seed=s) for s in range(2)]
            for _ in engines[path].candidates(drawn_batches, count):
                pass
            start = time.perf_counter()
            for _ in engines[path].candidates((drawn_batches[i % 2] for i in range(12)), count):
                pass
            table[path]["from_host_users_per_s"] = round(12 * options.users / (time.perf_counter() - start))
            print(f"  {path}, {count} candidates: {table[path]}", flush=True)


def busy_with(run, repeats=3):
    """Share of the time from the first kernel's start to the last one's end without a kernel, and ms of each kernel."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiled.events() if e.device_type.name == "CUDA")
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    by_name = {}
    for event in profiled.events():
        if event.device_type.name == "CUDA":
            by_name[event.name] = by_name.get(event.name, 0.0) + (event.time_range.end - event.time_range.start)
    by_name = {name: us / repeats / 1000 for name, us in sorted(by_name.items(), key=lambda item: -item[1])[:14]}
    for name, ms in by_name.items():
        print(f"    {ms:7.3f} ms  {name[:110]}", flush=True)
    return round(1 - busy / (end - spans[0][0]), 4), {name[:60]: round(ms, 3) for name, ms in by_name.items()}


def streamed(engine, shortest, users, steps, batches=24, record=None):
    """Users per second of `slate` from host arrays to host arrays, different batches, after four to warm up.

    With `record` the device's stages are told, as every run of `score` has it.
    """
    drawn_batches = [drawn(users, shortest, seed=s) for s in range(4)]
    for _ in engine.slate(drawn_batches, steps):
        pass
    start = time.perf_counter()
    for _ in engine.slate((drawn_batches[i % 4] for i in range(batches)), steps, record):
        pass
    return round(users * batches / (time.perf_counter() - start))


def measure(model, name, shortest, options, result):
    batch = drawn(options.users, shortest)
    with torch.inference_mode():
        reference = NoCache(model, first_users(batch, CHECKED), options.steps, torch.float32)
        reference.run()
        truth = tuple(t[: options.steps].T.cpu().numpy() for t in (reference.items, reference.log_prob))
        del reference
        engines, calls, checks = {}, {}, {}
        for path, precision in FUSED.items():
            engine, slate, calls[path] = fused(model, batch, options.steps, precision)
            checks[path] = agreement(slate.tokens_BK, slate.log_prob_BK, truth)
            again = [next(engine.slate([batch], options.steps)) for _ in range(10)]
            checks[path]["same_items_10_replays"] = all((s.tokens_BK == slate.tokens_BK).all() for s in again)
            engines[path] = engine
        peers = {} if options.quick else {
            "eager, no cache": NoCache(model, batch, options.steps, torch.float16),
            "eager, KV cache": Plain(model, batch, options.steps, torch.float16),
            "torch.compile, usual": Plain(model, batch, options.steps, torch.float16).compiled(),
            "torch.compile, tuned": Tuned(model, batch, options.steps, torch.float16).compiled(),
        }  # fmt: skip
        for peer, program in peers.items():
            start = time.perf_counter()
            program.run()
            found = (t[: options.steps].T.cpu().numpy() for t in (program.items, program.log_prob))
            checks[peer] = agreement(*found, truth)
            calls[peer] = graphed(program.run) if "compile" in peer else program.run
            print(f"  {peer}: ready after {time.perf_counter() - start:.0f} s", flush=True)
        times = interleaved(calls, 9 if options.quick else 13)
        table = result[name] = {}
        for path, ms in times.items():
            rate = options.users / ms * 1000
            table[path] = {
                "ms": round(ms, 3),
                "users_per_s": round(rate),
                "floor_share": round(rate / FLOOR, 3),
            } | checks[path]
            print(
                f"  {path:24s} {ms:9.3f} ms {rate:10,.0f} users/s  {rate / FLOOR:6.1%} of the floor  {checks[path]}",
                flush=True,
            )
        for path, engine in engines.items():
            table[path] |= {f"times {peer}": round(times[peer] / times[path], 2) for peer in (*FUSED, *peers)}
            table[path]["gpu_idle_share"], table[path]["kernels_ms"] = busy_with(calls[path])
            turns = [
                [streamed(engine, shortest, options.users, options.steps, record=told) for told in (None, Stages().add)]
                for _ in range(3)
            ]
            plain, recorded = (statistics.median(column) for column in zip(*turns, strict=True))
            table[path]["slate_from_host_users_per_s"] = plain
            table[path]["share_of_that_with_stages_told"] = round(recorded / plain, 4)
            print(f"  {path}: {table[path]}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=4096, help="batch size")
    parser.add_argument("--steps", type=int, default=10, help="decode passes")
    parser.add_argument("--quick", action="store_true", help="the engine alone, without the peers")
    parser.add_argument("--candidates", type=int, default=0, help="measure so many candidates, too")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    options = parser.parse_args()
    result = {
        "command": " ".join(sys.argv),
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__},
        "users": options.users,
        "steps": options.steps,
        "floor_users_per_s": FLOOR,
        "ceilings": ceilings(),
    }
    print(json.dumps(result), flush=True)
    model = demo_model(SIZES)
    for name, shortest in (("all lengths 50", WIDTH), ("lengths 5..50", 5)):
        print(name, flush=True)
        measure(model, name, shortest, options, result)
        torch.cuda.empty_cache()
    if options.candidates:
        candidates(model, options, result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
