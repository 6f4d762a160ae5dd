"""The server that `bench_serving.py` compares Triton with: FastAPI around the torch engine, as a team would write it.

    uvicorn tests.benchmarks.fastapi_peer:app --workers 2

One request is one batch of the engine, behind a lock, on a thread of FastAPI's pool. It is better than most: history
and features are this package's compiled ones, and a body is parsed once. `GENREC_PEER_VERSION` is the folder of a
version of a model repository that was exported with `--engine torch`; `GENREC_PEER_THREADS` are torch's.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from genrec_batch.core.arrays import HEADS
from genrec_batch.core.errors import GenrecError
from genrec_batch.serving.arms import Arms

torch.set_num_threads(int(os.environ["GENREC_PEER_THREADS"]))
app, lock = FastAPI(), Lock()
served = Arms.open(Path(os.environ["GENREC_PEER_VERSION"]))


def answered(body: bytes) -> dict[str, Any]:
    """Return the list of one user."""
    with lock:
        (answer,) = served.answers([body])
    if isinstance(answer, GenrecError):
        raise HTTPException(400, str(answer))
    heads = {head: answer.heads_KH[:, place].tolist() for place, head in enumerate(HEADS)}
    return {"video_id": answer.video_K.tolist(), "score": answer.score_K.tolist(), **heads}


@app.post("/recommend")
async def recommend(request: Request) -> dict[str, Any]:
    """Answer one request."""
    return await run_in_threadpool(answered, await request.body())


@app.get("/ready")
async def ready() -> dict[str, bool]:
    """Say that the model is loaded."""
    return {"ready": True}
