"""Exit code 0 if the model of a Triton server answers, 1 if it is not loaded, or its process gone or stuck: a probe.

    python jobs/triton/alive.py http://127.0.0.1:8000 genrec

Triton goes on saying that a model is ready after the model's process was killed, for want of memory for instance, and
fails every request. Whatever comes from the model is a sign of life, a refusal and a full queue, too.
"""

import http.client
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

WAIT_S = 15  # longer than a request may wait in the queue, --queue-timeout-ms
BODY = b'{"inputs": [{"name": "REQUEST", "datatype": "BYTES", "shape": [1, 1], "data": ["{\\"top_k\\": 1}"]}]}'


def main(url: str, model: str) -> None:
    """Ask the model for one video; end with exit code 1 where it fails or says nothing."""
    try:
        with urlopen(Request(f"{url}/v2/models/{model}/infer", BODY), timeout=WAIT_S):  # noqa: S310 - a server of one's own
            return
    except HTTPError as error:
        with error:
            if error.code in (http.client.NOT_FOUND, http.client.INTERNAL_SERVER_ERROR):
                sys.exit(f"{model} fails: {error.read().decode(errors='replace')}")
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"{url} does not answer: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
