"""`config.pbtxt`: what Triton is told of a model, and the request that warms it up.

Owns: the text, in the text format of Triton's own `ModelConfig` (`model_config.proto`). Must not know: files. In: the
options of an export and the catalog. Out: text, and the bytes of a request.
"""

from __future__ import annotations

import json
import re
from typing import Any

from genrec_batch.core.arrays import FIRST_ITEM
from genrec_batch.engines.remote import wire
from genrec_batch.model.catalog import Catalog
from genrec_batch.serving.options import RepositoryConfig
from genrec_batch.serving.triton import ONE_EACH, OUTPUTS, REQUEST, VIDEO_ID

START_S = 1_767_225_600  # 2026-01-01, of the events of the warm-up request

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {max_batch}
input [
{inputs}
]
output [
{outputs}
]
instance_group [
  {{ kind: {kind} count: {instances} }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {delay_us}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {timeout_us}
    allow_timeout_override: true
    max_queue_size: {queue_limit}
  }}
  priority_levels: {batches}
  default_priority_level: 1
  priority_queue_policy {{ key: {batches} value: {{ max_queue_size: {queue_limit} }} }}
}}
version_policy {{ latest {{ num_versions: 1 }} }}
model_warmup [
  {{
    name: "request"
    batch_size: 1
    inputs {{
      key: "{request}"
      value {{ data_type: TYPE_STRING dims: [ 1 ] input_data_file: "request" }}
    }}
  }}
]
"""


def of(config: RepositoryConfig, catalog: Catalog) -> str:
    """Return the text of `config.pbtxt`."""
    outputs = [
        f'  {{ name: "{name}" data_type: {type_ or id_type(catalog)} dims: [ {1 if name in ONE_EACH else -1} ] }}'
        for name, type_ in OUTPUTS.items()
    ]
    inputs = [(REQUEST, "TYPE_STRING", 1)]
    inputs += [(name, f"TYPE_{type_}", width) for name, (type_, width) in wire.INPUTS.items()]
    return CONFIG.format(
        name=config.name,
        request=REQUEST,
        inputs=",\n".join(
            f'  {{ name: "{name}" data_type: {type_} dims: [ {width} ] optional: true }}'
            for name, type_, width in inputs
        ),
        batches=wire.PRIORITY,
        outputs=",\n".join(outputs),
        kind="KIND_GPU" if config.device.startswith("cuda") else "KIND_CPU",
        instances=config.instances,
        max_batch=config.max_batch,
        delay_us=round(config.queue_delay_ms * 1000),
        timeout_us=round(config.queue_timeout_ms * 1000),
        queue_limit=config.queue_limit,
    )


def id_type(catalog: Catalog) -> str:
    """Return the type of the tensor of a catalog's ids."""
    if not catalog.id_type.is_integer():
        return "TYPE_STRING"
    return "TYPE_UINT64" if catalog.id_type.is_unsigned_integer() else "TYPE_INT64"


def stored_id_type(config: str) -> str | None:
    """Return the type of the tensor of ids in the text of a config.pbtxt, None where it has none."""
    found = re.search(rf'name: "{VIDEO_ID}" data_type: (\w+)', config)
    return found[1] if found else None


def warm_up(catalog: Catalog, *, max_events: int, own: bool) -> bytes:
    """Return the request of a user who has seen the catalog's most viewed videos, as many as a history keeps.

    One with a log's `own` columns has no events, since what these hold is not known here.
    """
    if own:
        return b'{"user_id": 0}'
    events = min(max_events, max(len(catalog) - FIRST_ITEM, 1))
    columns: dict[str, list[Any]] = {
        "video_id": catalog.items["video_id"].head(events).to_list(),
        "timestamp": [START_S + 60 * place for place in range(events)],
        "watch_percentage": [0.5] * events,
    }
    return json.dumps({"user_id": 0, "events": columns}).encode()
