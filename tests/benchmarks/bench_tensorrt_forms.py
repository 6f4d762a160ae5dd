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

from genrec_batch.engines.onnx_graph import FLOAT, INT32
from genrec_batch.engines.tensorrt import builder, graphs, layers, memory

ROWS = 16  # equal query rows for the fused attention kernel, whose tile has as many anyway


def as_is():
    """Change nothing."""


def loose():
    """FP16 flag only: the builder may take any type for any layer."""

    def configure(library, builder, network, _precision, architecture):
        config = plain(library, builder, network, "fp32", architecture)
        config.set_flag(library.api.BuilderFlag.FP16)
        return config

    plain = builder._configure
    builder._configure = configure


def half():
    """Every layer with a floating-point result must be computed in fp16, but for those named fp32."""
    builder._pin_fp32 = pin_everything


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

    plain = builder._configure
    builder._configure = configure


def untrimmed():
    """The last layer computes every position, then the last real one is gathered."""

    def last_layer(network, graph, shape, x, where):
        x = graphs._full_layer(network, graph, shape, network.config.layers - 1, x, where)
        starts = graph.constant((np.arange(shape.rows) * shape.positions).astype(np.int32))
        return graph.node("Gather", x, graph.node("Add", starts, where[0]), axis=0)

    graphs._last_layer = last_layer


def natural():
    """Caches are [B, S, D] as the product gives them, without heads moved forward."""

    def shapes(network, shape):
        if network.plugin:
            return stored(network, shape)
        sizes = [shape.rows, shape.positions, network.config.width]
        return {f"{name}_{i}": sizes for i in range(network.config.layers) for name in ("keys", "values")}

    def full_layer(network, graph, shape, index, x, where):
        del where
        config, sizes = network.config, [shape.rows, shape.positions, network.config.width]
        qkv = layers.linear(graph, x, *network.layer(index).qkv, plugin=False)
        parts = graph.split(qkv, *[config.width] * 3)
        for name, part in zip(("keys", "values"), parts[1:], strict=True):
            graph.output(graph.reshape(part, *sizes), f"{name}_{index}", sizes)
        heads = [graphs.by_head(network, graph, shape, part) for part in parts]
        context = layers.causal_attention(graph, heads, [shape.rows, config.heads, shape.positions, config.head_size])
        return graphs.after_attention(network, graph, index, x, context)

    def last_layer(network, graph, shape, x, where):
        config, lengths = network.config, where[0]
        rows, positions, index = shape.rows, shape.positions, config.layers - 1
        starts = graph.constant((np.arange(rows) * positions).astype(np.int32))
        last = graph.node("Gather", x, graph.node("Add", starts, lengths), axis=0)
        weight, bias = network.layer(index).qkv
        width, sizes = config.width, [rows, positions, config.width]
        query = layers.linear(graph, last, weight[:width], bias[:width], plugin=False)
        parts = graph.split(layers.linear(graph, x, weight[width:], bias[width:], plugin=False), width, width)
        for name, part in zip(("keys", "values"), parts, strict=True):
            graph.output(graph.reshape(part, *sizes), f"{name}_{index}", sizes)
        keys, values = (graphs.by_head(network, graph, shape, part) for part in parts)
        limit = graph.reshape(lengths, rows, 1)
        mask = layers.visible(graph, limit, positions, [rows, 1, positions], inclusive=True)
        sizes = [rows, config.heads, positions, config.head_size]
        part = layers.over_cache(graph, query, keys, values, mask, sizes)
        context = graph.reshape(layers.merged(graph, [part]), rows, width)
        return graphs.after_attention(network, graph, index, last, context)

    def cached(network, graph, shape, fresh, caches, recent, masks):
        heads = [graphs.by_head(network, graph, shape, cache) for cache in caches]
        return attend(network, graph, shape, fresh, heads, recent, masks)

    stored, attend = graphs.cache_shapes, graphs._cached_attention
    graphs.cache_shapes, graphs._full_layer, graphs._last_layer, graphs._cached_attention = (
        shapes,
        full_layer,
        last_layer,
        cached,
    )


def products():
    """One query over the cache by multiplying and summing, instead of by a matrix product."""

    def over_cache(graph, query, keys, values, mask, sizes):
        rows, heads, positions, head_size = sizes
        alone = graph.reshape(query, rows, heads, 1, head_size)
        scores = graph.node("ReduceSum", graph.node("Mul", alone, keys), graph.sizes(3), keepdims=0)

        def weigh(weights):
            column = graph.reshape(weights, rows, heads, positions, 1)
            return graph.node("ReduceSum", graph.node("Mul", column, values), graph.sizes(2), keepdims=0)

        return layers.Keys(scores=graph.node("Add", scores, mask), weigh=weigh)

    layers.over_cache = over_cache


def last_products():
    """`products` for the last layer of prefill alone."""

    def last_layer(*given):
        before = layers.over_cache
        products()
        try:
            return layer(*given)
        finally:
            layers.over_cache = before

    layer = graphs._last_layer
    graphs._last_layer = last_layer


def alike(count=ROWS):
    """Decode: the query as 16 equal rows over all keys side by side, in the form that fused attention takes."""

    def attend(network, graph, shape, fresh, caches, recent, masks):
        config, rows, steps = network.config, shape.rows, shape.steps
        query, key, value = graph.split(fresh, *[config.width] * 3)
        _, keys_read, values_read = graph.split(recent, *[config.width] * 3)
        every = []
        for cache, read, new in ((caches[0], keys_read, key), (caches[1], values_read, value)):
            earlier = graph.transpose(graph.reshape(read, steps, rows, config.heads, config.head_size), 1, 2, 0, 3)
            itself = graph.reshape(new, rows, config.heads, 1, config.head_size)
            every.append(graph.node("Concat", cache, earlier, itself, axis=2))
        keys = shape.positions + steps + 1
        prefix = graph.reshape(masks[0], rows, 1, 1, shape.positions)
        before = graph.node("Expand", graph.reshape(masks[1], 1, 1, 1, steps), graph.sizes(rows, 1, 1, steps))
        nothing = graph.constant(np.zeros((rows, 1, 1, 1), np.float32))
        mask = graph.node("Concat", prefix, before, nothing, axis=3)
        mask = graph.node("Add", mask, graph.constant(np.zeros((1, 1, count, keys), np.float32)))
        alone = graph.reshape(query, rows, config.heads, 1, config.head_size)
        same = graph.node("Concat", *[alone] * count, axis=2)
        scores = graph.node("Add", graph.node("MatMul", same, graph.transpose(every[0], 0, 1, 3, 2)), mask)
        mean = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), every[1])
        first = graph.node("Slice", mean, graph.sizes(0), graph.sizes(1), graph.sizes(2))
        return graph.reshape(first, rows, config.width)

    graphs._cached_attention = attend


def one():
    """As `alike`, with one query row: the form whose fused kernel gave wrong items, with the softmax of 8.6 kept."""
    alike(1)


def transposed():
    """Prefill stores keys as [B, H, HD, S], so that decode multiplies by them as they lie."""

    def shapes(network, shape):
        found = stored(network, shape)
        if network.plugin:
            return found
        config = network.config
        sizes = [shape.rows, config.heads, config.head_size, shape.positions]
        return {name: sizes if name.startswith("keys") else old for name, old in found.items()}

    def outputs(network, graph, shape, index, parts):
        turned = graph.transpose(parts[0], 0, 1, 3, 2)
        mine = shapes(network, shape)
        graph.output(turned, f"keys_{index}", mine[f"keys_{index}"])
        named = graph.node("Identity", parts[1])
        return [parts[0], graph.output(named, f"values_{index}", mine[f"values_{index}"])]

    def cached(network, graph, shape, fresh, caches, recent, masks):
        keys = graph.transpose(caches[0], 0, 1, 3, 2)
        return attend(network, graph, shape, fresh, [keys, caches[1]], recent, masks)

    stored, attend = graphs.cache_shapes, graphs._cached_attention
    graphs.cache_shapes, graphs._output_caches, graphs._cached_attention = shapes, outputs, cached


def whole():
    """All layers in one engine: TensorRT 8.6 computes 6 layers in one node slower than three times 2."""
    builder.PLAIN_LAYERS = 0


def triples():
    """Three layers an engine."""
    builder.PLAIN_LAYERS = 3


def single():
    """One layer an engine."""
    builder.PLAIN_LAYERS = 1


def cut():
    """One layer an engine, which ends after the next layer's product of q, k and v: attention reads what was written.

    Within an engine 8.6 writes keys and values twice, once for attention and once as outputs.
    """
    builder.PLAIN_LAYERS = 1

    def queries(network, shape):
        return [shape.rows, network.config.heads, shape.positions, network.config.head_size]

    def tensors(network, shape):
        more = {f"query_{segment}": queries(network, shape) for segment in range(len(network.segments()) - 2)}
        return between(network, shape) | ({} if network.plugin else more)

    def project(network, graph, shape, index, x):
        weight, bias = network.layer(index).qkv
        width, final = network.config.width, index == network.config.layers - 1
        first = width if final else 0  # the last layer has one query a row, worked out where it is used
        product = layers.linear(graph, x, weight[first:], bias[first:], plugin=False)
        parts = [
            graphs.by_head(network, graph, shape, part) for part in graph.split(product, *[width] * (2 if final else 3))
        ]
        graphs._output_caches(network, graph, shape, index, parts[-2:])
        return parts

    def written(network, graph, shape, index):
        keys, values = graphs.cache_inputs(network, graph, shape, index)
        turned = graphs.cache_shapes(network, shape)[keys][-1] == shape.positions
        return graph.transpose(keys, 0, 1, 3, 2) if turned else keys, values

    def prefill(network, shape, segment=0):
        if network.plugin:
            return whole_prefill(network, shape, segment)
        config, graph, rows = network.config, network.graph(), shape.rows
        last = config.layers - 1
        if segment == 0:
            columns = graphs.feature_columns(config, shape)
            features = graph.cast(graph.input("features", [rows, columns], FLOAT), graph.element)
            tokens = graph.input("tokens", [rows, shape.positions - 1], INT32)
            x = graphs._embed_history(network, graph, shape, features, tokens, [])
        else:
            x = graph.input(f"left_{segment - 1}", [shape.places, config.width])
        if segment == last:
            lengths = graph.input("lengths", [rows], INT32)
            starts = graph.constant((np.arange(rows) * shape.positions).astype(np.int32))
            newest = graph.node("Gather", x, graph.node("Add", starts, lengths), axis=0)
            weight, bias = network.layer(last).qkv
            query = layers.linear(graph, newest, weight[: config.width], bias[: config.width], plugin=False)
            keys, values = written(network, graph, shape, last)
            limit = graph.reshape(lengths, rows, 1)
            mask = layers.visible(graph, limit, shape.positions, [rows, 1, shape.positions], inclusive=True)
            part = layers.over_cache(graph, query, keys, values, mask, queries(network, shape))
            context = graph.reshape(layers.merged(graph, [part]), rows, config.width)
            x = graphs.after_attention(network, graph, last, newest, context)
            graph.output(graph.node("Identity", x), "hidden", [rows, config.width])
            graphs._choose_item(network, graph, shape, x, None)
            return graph.serialized("prefill")
        if segment == 0:
            parts = project(network, graph, shape, 0, x)
        else:
            query = graph.input(f"query_{segment - 1}", queries(network, shape))
            parts = [query, *written(network, graph, shape, segment)]
        context = layers.causal_attention(graph, parts, queries(network, shape))
        x = graphs.after_attention(network, graph, segment, x, context)
        following = project(network, graph, shape, segment + 1, x)
        if segment + 1 < last:
            graph.output(graph.node("Identity", following[0]), f"query_{segment}", queries(network, shape))
        graph.output(graph.node("Identity", x), f"left_{segment}", [shape.places, config.width])
        return graph.serialized("prefill")

    between, whole_prefill = memory.between, graphs.prefill
    memory.between, graphs.prefill = tensors, prefill


def spelled():
    """Prefill's attention with its softmax spelled out, which is not taken for the fused kernel."""

    def attention(graph, qkv, sizes):
        (q, k, v), (rows, heads, positions, head_size) = qkv, sizes
        ahead = np.triu(np.full((1, 1, positions, positions), layers.BANNED, np.float32), 1)
        scores = graph.node("Add", graph.node("MatMul", q, graph.transpose(k, 0, 1, 3, 2)), graph.constant(ahead))
        weights = graph.node("Exp", graph.node("Sub", scores, graph.node("ReduceMax", scores, axes=[3], keepdims=1)))
        total = graph.node("ReduceSum", weights, graph.sizes(3), keepdims=1)
        mean = graph.node("Div", graph.node("MatMul", weights, v), total)
        return graph.reshape(graph.transpose(mean, 0, 2, 1, 3), rows * positions, heads * head_size)

    layers.causal_attention = attention


def alone():
    """No caches are written: prefill alone, and decode reads zeros (its items mean nothing)."""

    def outputs(network, graph, shape, index, parts):
        del network, graph, shape, index
        return list(parts)

    graphs._output_caches = outputs


FORMS = {
    form.__name__.replace("_", "-"): form
    for form in (
        as_is,
        loose,
        half,
        direct,
        untrimmed,
        natural,
        products,
        last_products,
        alike,
        one,
        transposed,
        whole,
        triples,
        single,
        cut,
        spelled,
        alone,
    )
}


PATCHED = {
    builder: ("_configure", "_pin_fp32", "PLAIN_LAYERS"),
    graphs: ("prefill", "cache_shapes", "_full_layer", "_last_layer", "_cached_attention", "_output_caches"),
    layers: ("over_cache", "causal_attention"),
    memory: ("between",),
}


def main():
    """Time one form after the other in this process: loading the builder takes longer than builder."""
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
