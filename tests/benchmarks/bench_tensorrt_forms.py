"""Other ways to spell the plain TensorRT network, each timed and checked as `bench_tensorrt.py run --plain` does it.

    python tests/benchmarks/bench_tensorrt_forms.py FORM [FORM ...] --json forms.json -- run --plain --layers 2 ...

A FORM is words joined by `+`, applied from left to right: what each changes is the docstring of its function below;
`as-is` changes nothing. What follows `--` goes to `bench_tensorrt.py`. What won is in the package; what lost stays
here, so that it can be tried again on another card or library.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import bench_tensorrt as bench

from genrec_batch.engines import tensorrt_build as building
from genrec_batch.engines import tensorrt_graphs as loop
from genrec_batch.engines import tensorrt_nodes as nodes
from genrec_batch.engines import tensorrt_slot as slots


def as_is():
    """Change nothing."""


def loose():
    """FP16 flag only: the builder may take any type for any layer."""

    def configure(library, builder, network, _precision, architecture):
        config = plain(library, builder, network, "fp32", architecture)
        config.set_flag(library.api.BuilderFlag.FP16)
        return config

    plain = building._configure
    building._configure = configure


def half():
    """Every layer with a floating-point result must be computed in fp16, but for those named fp32."""
    building._pin_fp32 = pin_everything


def pin_everything(api, network):
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in (api.LayerType.CONSTANT, api.LayerType.CAST):
            continue
        kinds = [layer.get_output(i).dtype for i in range(layer.num_outputs)]
        kind = api.DataType.FLOAT if layer.name.startswith("fp32") else api.DataType.HALF
        if kinds and all(k in (api.DataType.HALF, api.DataType.FLOAT) for k in kinds):
            count += 1
            layer.precision = kind
            for i in range(layer.num_outputs):
                layer.set_output_type(i, kind)
    print(f"pinned {count} of {network.num_layers} layers", flush=True)


def direct():
    """Inputs and outputs are linear and used as they are: no copies that reformat (DIRECT_IO)."""

    def configure(library, builder, network, precision, architecture):
        config = plain(library, builder, network, precision, architecture)
        linear = 1 << int(library.api.TensorFormat.LINEAR)
        for get, count in ((network.get_input, network.num_inputs), (network.get_output, network.num_outputs)):
            for index in range(count):
                get(index).allowed_formats = linear
        config.set_flag(library.api.BuilderFlag.DIRECT_IO)
        return config

    plain = building._configure
    building._configure = configure


def untrimmed():
    """The last layer computes every position, then the last real one is gathered."""

    def last_layer(network, graph, shape, x, where):
        x = loop._full_layer(network, graph, shape, network.config.layers - 1, x, where)
        starts = graph.constant((np.arange(shape.rows) * shape.positions).astype(np.int32))
        return graph.add("Gather", x, graph.add("Add", starts, where[0]), axis=0)

    loop._last_layer = last_layer


def straight():
    """Keys are stored as [B, H, S, HD], as attention in prefill makes them: decode turns them at every step."""

    def shapes(network, shape):
        sizes = [shape.rows, network.config.heads, shape.positions, network.config.head_size]
        return {name: old if network.plugin else sizes for name, old in stored(network, shape).items()}

    def outputs(network, graph, shape, index, parts):
        for name, part in zip(("keys", "values"), parts, strict=True):
            sizes = shapes(network, shape)[f"{name}_{index}"]
            graph.output(graph.add("Identity", part, name=f"{name}_{index}"), sizes)

    def cached(network, graph, shape, fresh, caches, recent, masks):
        keys = graph.transpose(caches[0], 0, 1, 3, 2)
        return attend(network, graph, shape, fresh, [keys, caches[1]], recent, masks)

    stored, attend = loop.cache_shapes, loop._cached_attention
    loop.cache_shapes, loop._output_caches, loop._cached_attention = shapes, outputs, cached


def last_matmul():
    """The last layer's one query by matrix products, as in decode, instead of sums of products."""

    def over_positions(graph, query, keys, values, mask, sizes):
        return nodes.over_cache(graph, query, graph.transpose(keys, 0, 1, 3, 2), values, mask, sizes)

    nodes.over_positions = over_positions


def whole():
    """All layers in one engine: TensorRT 8.6 computes 6 layers in one node slower than three times 2."""
    building.PLAIN_LAYERS = 0


def triples():
    """Three layers an engine."""
    building.PLAIN_LAYERS = 3


def single():
    """One layer an engine."""
    building.PLAIN_LAYERS = 1


def cut():
    """One layer an engine, which ends after the next layer's product of q, k and v: attention reads what was written.

    Within an engine 8.6 writes keys and values twice, once for attention and once as outputs.
    """
    building.PLAIN_LAYERS = 1

    def queries(network, shape):
        return [shape.rows, network.config.heads, shape.positions, network.config.head_size]

    def tensors(network, shape):
        more = {f"query_{piece}": queries(network, shape) for piece in range(len(network.pieces()) - 2)}
        return between(network, shape) | ({} if network.plugin else more)

    def project(network, graph, shape, index, x):
        weight, bias = network.attention_input(index)
        width, final = network.config.width, index == network.config.layers - 1
        first = width if final else 0  # the last layer has one query a row, worked out where it is used
        product = nodes.linear(graph, x, weight[first:], bias[first:], plugin=False)
        parts = [loop.by_head(network, graph, shape, part) for part in graph.split(product, 2 if final else 3, width)]
        loop._output_caches(network, graph, shape, index, parts[-2:])
        return parts

    def written(network, graph, shape, index):
        keys, values = loop.cache_inputs(network, graph, shape, index)
        turned = loop.cache_shapes(network, shape)[keys][-1] == shape.positions
        return graph.transpose(keys, 0, 1, 3, 2) if turned else keys, values

    def prefill(network, shape, piece=0):
        if network.plugin:
            return whole_prefill(network, shape, piece)
        config, graph, rows = network.config, network.graph(), shape.rows
        last = config.layers - 1
        if piece == 0:
            columns = loop.feature_columns(config, shape)
            features = graph.cast(graph.input("features", [rows, columns], nodes.FLOAT), graph.element)
            tokens = graph.input("tokens", [rows, shape.positions - 1], nodes.INT32)
            x = loop._embed_history(network, graph, shape, features, tokens, [])
        else:
            x = graph.input(f"left_{piece - 1}", [shape.places, config.width])
        if piece == last:
            lengths = graph.input("lengths", [rows], nodes.INT32)
            starts = graph.constant((np.arange(rows) * shape.positions).astype(np.int32))
            newest = graph.add("Gather", x, graph.add("Add", starts, lengths), axis=0)
            weight, bias = network.attention_input(last)
            query = nodes.linear(graph, newest, weight[: config.width], bias[: config.width], plugin=False)
            keys, values = written(network, graph, shape, last)
            limit = graph.reshape(lengths, rows, 1)
            mask = nodes.visible(graph, limit, shape.positions, [rows, 1, shape.positions], inclusive=True)
            part = nodes.over_positions(graph, query, keys, values, mask, queries(network, shape))
            context = graph.reshape(nodes.merged(graph, [part]), rows, config.width)
            x = loop.after_attention(network, graph, last, newest, context)
            graph.output(graph.add("Identity", x, name="hidden"), [rows, config.width])
            loop._choose_item(network, graph, shape, x, None)
            return graph.serialize("prefill")
        if piece == 0:
            parts = project(network, graph, shape, 0, x)
        else:
            query = graph.input(f"query_{piece - 1}", queries(network, shape))
            parts = [query, *written(network, graph, shape, piece)]
        context = nodes.causal_attention(graph, parts, queries(network, shape))
        x = loop.after_attention(network, graph, piece, x, context)
        following = project(network, graph, shape, piece + 1, x)
        if piece + 1 < last:
            graph.output(graph.add("Identity", following[0], name=f"query_{piece}"), queries(network, shape))
        graph.output(graph.add("Identity", x, name=f"left_{piece}"), [shape.places, config.width])
        return graph.serialize("prefill")

    between, whole_prefill = slots.between, loop.prefill
    slots.between, loop.prefill = tensors, prefill


def spelled():
    """Prefill's attention with its softmax spelled out, which is not taken for the fused kernel."""

    def attention(graph, qkv, sizes):
        (q, k, v), (rows, heads, positions, head_size) = qkv, sizes
        ahead = np.triu(np.full((1, 1, positions, positions), nodes.BANNED, np.float32), 1)
        scores = graph.add("Add", graph.add("MatMul", q, graph.transpose(k, 0, 1, 3, 2)), graph.constant(ahead))
        weights = graph.add("Exp", graph.add("Sub", scores, graph.add("ReduceMax", scores, axes=[3], keepdims=1)))
        total = graph.add("ReduceSum", weights, graph.ints(3), keepdims=1)
        mean = graph.add("Div", graph.add("MatMul", weights, v), total)
        return graph.reshape(graph.transpose(mean, 0, 2, 1, 3), rows * positions, heads * head_size)

    nodes.causal_attention = attention


def alone():
    """No caches are written: prefill alone, and decode reads zeros (its items mean nothing)."""

    loop._output_caches = lambda *_: None


FORMS = {
    form.__name__.replace("_", "-"): form
    for form in (
        as_is,
        loose,
        half,
        direct,
        untrimmed,
        straight,
        last_matmul,
        whole,
        triples,
        single,
        cut,
        spelled,
        alone,
    )
}


PATCHED = {
    building: ("_configure", "_pin_fp32", "PLAIN_LAYERS"),
    loop: ("prefill", "cache_shapes", "_full_layer", "_last_layer", "_cached_attention", "_output_caches"),
    nodes: ("over_positions", "causal_attention"),
    slots: ("between",),
}


def main():
    """Time one form after the other in this process: loading the builder takes longer than building."""
    forms, given = sys.argv[1:], []
    if "--" in forms:
        forms, given = forms[: forms.index("--")], forms[forms.index("--") + 1 :]
    out = Path(forms.pop(forms.index("--json") + 1)) if "--json" in forms else None
    forms = [form for form in forms if form != "--json"]
    originals = {(module, name): getattr(module, name) for module, names in PATCHED.items() for name in names}
    results = {}
    for form in forms:
        for (module, name), value in originals.items():
            setattr(module, name, value)
        try:
            for word in form.split("+"):
                FORMS[word]()
            print(f"=== {form}", flush=True)
            sys.argv[1:] = given
            results[form] = bench.main()
        except (ValueError, AssertionError) as error:  # a form that this library cannot build or run
            results[form] = {"error": str(error)[:500]}
            print(results[form], flush=True)
        if out:
            out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
