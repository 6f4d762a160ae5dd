"""What a training leaves: the model directory with its card, curves and log.

Owns: the text of the card, the curves as SVG, the order in which files appear. Must not know: how a model is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from genrec_batch.core.arrays import F32, HEADS
from genrec_batch.core.errors import ModelError, refused
from genrec_batch.features.sampled import in_short
from genrec_batch.model import weights
from genrec_batch.model.trained import Trained
from genrec_batch.training.material import Material
from genrec_batch.training.options import TrainConfig

CURVES, LOG_FILE = "curves.svg", "training.jsonl"
WIDTH, HEIGHT, MARGIN = 720, 260, 44
CARD = """# A genrec-batch model

Generative recommender for short video: {parameters:,} parameters, vocabulary {vocabulary:,}, width {width}, {layers}
layers, {heads} attention heads, {positions:,} positions. Trained by `genrec-batch train` on {events:,} events of
{users:,} users; {catalog_videos:,} videos can be recommended.

Score a log with it: `genrec-batch score events.parquet recs.parquet --model DIR --max-events {max_events}`

## Training

Held out: {split}. Of {planned_epochs} planned epochs, {epochs} validated best{again}.{on_sets}
{seen} Seed {seed}, {precision} on {device}; the last day's popularity corrects the output bias by {bias_correction:g}.
{missing}
![loss and NDCG@10 by epoch]({curves})

The figures of each epoch are in `{log}`.
{measured}{distribution}
## Files

| file | what |
| --- | --- |
| `config.json` | sizes, feature layout, what training found |
| `model.safetensors` | the weights, under PyTorch's names |
| `catalog.parquet` | token, video_id, count |
| `{log}`, `{curves}` | how the training went |
| `onnx/` | graphs, after `genrec-batch model export` |
"""
AGAIN = ", and the model was trained again on the whole log for as many"
ON_SETS = " {set_epochs} further epochs were on sets: the order of what follows is shuffled in tens."
MASKED = (
    "Videos that a user had seen were left out of the softmax: this model ranks seen videos badly, so do not score "
    "with `--include-seen`."
)
UNMASKED = "Videos that a user had seen were targets like any other."
MEASURED = """
## Validation

{rows:,} users, by the model before it was trained again. `--decode auto` is {decode}.

| decode | HR@10 of the next video | NDCG@10 of the next video | recall@10 of the next 10 events |
| --- | --- | --- | --- |
{lists}

The heads are calibrated on these users.

| head | views | mean label | AUC | log loss | log loss uncalibrated | log loss of the mean label |
| --- | --- | --- | --- | --- | --- | --- |
{heads}
"""
DISTRIBUTION = """
## Inputs and scores

Of {users:,} users at the end of the training, with `--decode {decode}`. `config.json` has the distribution of these and
further quantities; each run of `score` tells how far its own has moved from it.

| | mean | median |
| --- | --- | --- |
{rows}
"""
HEADER = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11" '
    'role="img" aria-label="loss and NDCG@10 by epoch">'
)
COLOURS = {"loss": "#4269d0", "valid_loss": "#ff725c", "valid_ndcg@10": "#3ca951"}


def save(
    out: Path,
    options: TrainConfig,
    material: Material,
    arrays: Mapping[str, F32],
    trained: Trained,
    history: Sequence[Mapping[str, Any]],
    *,
    replace: bool = False,
) -> None:
    """Write a model directory; its config.json, which marks it as whole, is written last.

    Raises:
        ModelError: it cannot be written.
        RetryError: the disk is full; nothing of a model is left then.
    """
    if replace:
        shutil.rmtree(out, ignore_errors=True)
    fresh = not out.exists()
    written = False
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / LOG_FILE).write_text("".join(json.dumps(row) + "\n" for row in history))
        (out / CURVES).write_text(curves(history))
        material.log.catalog.write(out / "catalog.parquet")
        weights.save(
            out,
            material.config,
            arrays,
            trained=True,
            card=card(options, material, trained),
            training=trained,
        )
        written = True
    except OSError as error:
        raise refused(error, f"--out {out}", ModelError) from error
    finally:
        if not written:
            for name in (LOG_FILE, CURVES, "catalog.parquet", "model.safetensors", "README.md"):
                (out / name).unlink(missing_ok=True)
            if fresh:
                with suppress(OSError):
                    out.rmdir()


def card(options: TrainConfig, material: Material, trained: Trained) -> str:
    """Return the model card."""
    config, facts = material.config, trained.facts
    sizes = {name: getattr(config, name) for name in ("vocabulary", "width", "layers", "heads", "positions")}
    missing = [head for head in HEADS if head not in trained.heads]
    return CARD.format(
        **facts,
        **sizes,
        max_events=trained.max_events,
        again=AGAIN if facts["refit"] else "",
        on_sets=ON_SETS.format(**facts) if facts["set_epochs"] else "",
        seen=MASKED if trained.seen_masked else UNMASKED,
        seed=options.seed,
        curves=CURVES,
        log=LOG_FILE,
        measured=_validation(facts["validation"], trained),
        distribution=_distribution(trained),
        missing=f"\nWithout labels, so of no meaning: {', '.join(missing)}.\n" if missing else "",
    )


def _validation(valid: Mapping[str, Any], trained: Trained) -> str:
    if not valid:
        return ""
    measured = dict(valid["decode"])
    sets = trained.facts["sets"]
    if sets is not None:
        other, said = ("before", "") if sets["kept"] else ("after", ", which were undone")
        measured |= {f"{mode}, {other} {sets['epochs']} epochs on sets{said}": of for mode, of in sets[other].items()}
    lists = [
        f"| {mode} | {found['hr@10']:.4f} | {found['ndcg@10']:.4f} | {found['recall@10']:.4f} |"
        for mode, found in measured.items()
    ]
    heads = [
        f"| {head} | {found['exposures']:,} | {found['mean_label']:.4f} | "
        f"{'' if found['auc'] is None else format(found['auc'], '.4f')} | {found['log_loss']:.4f} | "
        f"{found['log_loss_uncalibrated']:.4f} | {found['log_loss_of_the_mean']:.4f} |"
        for head, found in valid["heads"].items()
    ]
    return MEASURED.format(rows=valid["rows"], decode=trained.decode, lists="\n".join(lists), heads="\n".join(heads))


def _distribution(trained: Trained) -> str:
    if trained.distribution is None:
        return ""
    known = in_short(trained.distribution, trained.decode)
    rows = [f"| {name} | {mean:.4g} | {median:.4g} |" for name, mean, median in known if mean is not None]
    return DISTRIBUTION.format(users=trained.distribution.users, decode=trained.decode, rows="\n".join(rows))


def curves(history: Sequence[Mapping[str, Any]]) -> str:
    """Return loss and validation by epoch as SVG: losses on the left axis, NDCG@10 on the right."""
    rows = [row for row in history if row["phase"] == "search"]
    drawn = [HEADER, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    losses = [row[name] for row in rows for name in ("loss", "valid_loss") if name in row]
    for place, (name, colour) in enumerate(COLOURS.items()):
        values = [row[name] for row in rows if name in row]
        if not values:
            continue
        span = losses if "loss" in name else values
        low, high = min(span), max(span)
        drawn.append(_line(values, low, high, colour))
        x, anchor = (WIDTH - MARGIN + 4, "start") if place == 2 else (MARGIN - 4, "end")
        if place != 1:
            drawn += [
                f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{value:.3g}</text>'
                for y, value in ((MARGIN, high), (HEIGHT - MARGIN + 4, low))
            ]
        drawn.append(f'<text x="{MARGIN + 180 * place}" y="20" fill="{colour}">{name.replace("_", " ")}</text>')
    drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">epoch 1 to {len(rows)}</text></svg>\n')
    return "\n".join(drawn)


def _line(values: Sequence[float], low: float, high: float, colour: str) -> str:
    wide, tall = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    points = " ".join(
        f"{MARGIN + wide * i / max(1, len(values) - 1):.1f},{MARGIN + tall * (1 - (v - low) / ((high - low) or 1)):.1f}"
        for i, v in enumerate(values)
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
