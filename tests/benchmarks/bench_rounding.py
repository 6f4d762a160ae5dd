"""What rounding costs a model where it reads one position at a time: `python tests/benchmarks/bench_rounding.py`.

    --log events.parquet --model model/   by default the sample log and its trained model
    --options users=users.parquet         further options of `evaluate`
    --untrained                           the same sizes with seeded weights
    --json out.json

The torch engine computes the newest event, decoded items and logits in pairs of 8-bit numbers on a CPU with VNNI. Here
they are computed in fp32, in plain bf16 and in plain 8-bit numbers, these by fp32 products of rounded numbers, whose
sums are exact, so any processor will do. Printed for each: the share of fp32's top
10 (slates), and NDCG@10 of each user's newest event, held out. The last line is JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.parity import top_overlap
from genrec_batch.engines.torch import engine as torch_engine
from genrec_batch.engines.torch.linear import Linear
from genrec_batch.engines.torch.network import Layer, prepare_context, prepare_layers, scaled_qkv
from genrec_batch.engines.torch.phases import PlainPhases
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.evaluation.run import measure
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import Vectorizer
from genrec_batch.model.weights import demo_model, load

SAMPLE = Path(__file__).parents[2] / "sample_data"
WAYS = {  # context, what reads one position at a time, logits
    "fp32": ("fp32", "fp32", "fp32"),
    "bf16 before the newest event": ("bf16", "fp32", "fp32"),
    "bf16 everywhere": ("bf16", "bf16", "bf16"),
    "bf16, decode in 8 bits": ("bf16", "int8", "fp32"),
    "bf16, decode and logits in 8 bits": ("bf16", "int8", "int8"),
    "8 bits everywhere": ("int8", "int8", "int8"),
}


class Rounded:
    """`x @ weight.T + bias` of numbers rounded to -127..127, with a scale per row of x and per output."""

    dtype = torch.float32

    def __init__(self, weight_NM, bias_N):
        self.weight_NM, self.scale_N = whole(weight_NM.detach())
        self.bias_N = bias_N.detach()

    def __call__(self, x_RM, *, relu=False):
        x, scale_R1 = whole(x_RM.float())
        found = functional.linear(x, self.weight_NM) * scale_R1 * self.scale_N[:, 0] + self.bias_N
        return found.relu_() if relu else found


def whole(rows):
    """Return rows as whole numbers, and the scale of each."""
    scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (rows / scale).round(), scale


class Halved(Linear):
    """A product of numbers rounded to bf16, with sums and results in fp32, as processors compute it."""

    def __init__(self, weight_NM, bias_N):
        super().__init__(weight_NM.bfloat16().float(), bias_N, torch.float32)

    def __call__(self, x_RM, *, relu=False):
        return super().__call__(x_RM.bfloat16().float(), relu=relu)


def product(kind):
    """Return what prepares a product of a kind from weight and bias."""
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return Rounded if kind == "int8" else lambda weight, bias: Linear(weight, bias, types[kind])


def layers(network, kind):
    """Return the encoder's layers with products of a kind."""
    if kind != "int8":
        return prepare_layers(network, torch.float32 if kind == "fp32" else torch.bfloat16)
    return [
        Layer(
            qkv=Rounded(*scaled_qkv(network, i)),
            out=Rounded(layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias),
            up=Rounded(layer.linear1.weight, layer.linear1.bias),
            down=Rounded(layer.linear2.weight, layer.linear2.bias),
            norm1=(layer.norm1.weight, layer.norm1.bias),
            norm2=(layer.norm2.weight, layer.norm2.bias),
        )
        for i, layer in enumerate(network.encoder.layers)
    ]


OUTPUTS = {"fp32": product("fp32"), "bf16": Halved, "int8": Rounded}


def phases(way):
    """Return what stands in for the torch engine's choice of phases."""
    context, reading, logits = WAYS[way]

    def made(network, _device, _dtype, tokens):
        output = network.output_projection
        return PlainPhases(
            network=network,
            layers=prepare_context(network, layers(network, context), product(context), tokens),
            reading=layers(network, reading),
            output=OUTPUTS[logits](output.weight, output.bias),
            cache_dtype=torch.float32 if context == "fp32" else torch.bfloat16,
        )

    return made


def top_10(model, batch):
    """Return the items of each user's slate, [B, 10]."""
    engine = torch_engine.TorchEngine(model)
    return np.concatenate([each.tokens_BK for each in recommend_all(engine, [batch], Decoding(top_k=10))])


def main():
    """Read the command line, and compare the ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", default=str(SAMPLE / "events.parquet"))
    parser.add_argument("--model", default=str(SAMPLE / "model"))
    parser.add_argument("--options", nargs="*", default=[], help="further options of `evaluate`, as name=value")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    tables = dict(option.split("=", 1) for option in asked.options)
    model = load(Path(asked.model))
    model = demo_model(model.config) if asked.untrained else model
    dataset = Dataset.open(asked.log, ScoreConfig(model=asked.model, **tables), model=model)
    first = dataset.users.first_shard()
    batch = Vectorizer.of(dataset).inputs(first, 0).batch(np.arange(min(512, len(first))))
    found, exact = [], None
    for way in WAYS:
        torch_engine._phases = phases(way)
        tokens = top_10(dataset.model, batch)
        exact = tokens if exact is None else exact
        row = {"way": way, "users": len(tokens), "overlap": top_overlap(exact, tokens)}
        if not asked.untrained:
            config = EvaluateConfig(model=asked.model, leave_one_out=True, decode="slate", engine="torch", **tables)
            rankings = measure(config, asked.log, rules=False).report["rankings"]
            [row["ndcg@10"]] = [
                each["metrics"]["ndcg@10"]["value"] for each in rankings if (each["list"], each["next"]) == ("slate", 1)
            ]
        found.append(row)
        print(row, flush=True)
    last = {"bench": "rounding", "trained": not asked.untrained, "ways": found}
    if asked.json:
        asked.json.write_text(json.dumps(last, indent=1) + "\n")
    print(json.dumps(last))


if __name__ == "__main__":
    main()
