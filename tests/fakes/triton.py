"""A Triton server as a follower sees it, without any engine.

It loads the newest version of a folder, and answers as that version's `expected.json` says. What a test sets in
`refuses`, `crashes` or `answers_of` is what goes wrong.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from genrec_batch.serving import versions

POLLING = "explicit model load / unload is not allowed if polling is enabled"


class FakeTriton:
    """The HTTP endpoint on a loopback port, over one model of a repository."""

    def __init__(self, home):
        self.home, self.ready = home, 0
        self.refuses = ""  # reason for which a load is refused
        self.crashes = False  # the connection ends during a load
        self.answers_of = 0  # the version whose answers are given, whatever is ready; 0: the one that is ready
        self.polls = False
        self.loading = 0  # times that the newest version is said to be loading, before it is ready
        self.loads = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self._send(*fake.got(self.path))

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path.endswith("/load") and fake.crashes:
                    self.close_connection = True
                    return
                self._send(*fake.posted(self.path, body))

            def _send(self, code, value):
                content = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def got(self, path):
        if path == "/v2/health/live":
            return 200, {}
        return (200 if path.endswith(f"/versions/{self.ready}/ready") else 400), {}

    def posted(self, path, body):
        newest = max(versions.numbers(self.home), default=0)
        if path.endswith("/load"):
            self.loads.append(newest)
            if self.polls:
                self.ready = self.ready if self.refuses else newest
                return 503, {"error": POLLING}
            if self.refuses and newest != self.ready:
                return 400, {"error": f"load failed: {self.refuses}\n\nAt:\n  model.py(1): <module>"}
            self.ready = newest
            return 200, {}
        if path.endswith("/index") and self.loading:
            self.loading -= 1
            self.ready = self.ready if self.loading else newest
            return 200, [{"name": self.home.name, "version": str(newest), "state": "LOADING"}]
        if path.endswith("/index"):
            failed = {"name": self.home.name, "version": str(newest), "state": "UNAVAILABLE", "reason": self.refuses}
            return 200, [failed] if self.refuses else []
        asked = json.loads(body)["inputs"][0]["data"][0]
        return self._answer(asked)

    def _answer(self, asked):
        file = self.home / str(self.answers_of or self.ready) / "expected.json"
        found = next((each for each in json.loads(file.read_text()) if each["request"] == asked), None)
        if found is None:
            return 400, {"error": "no such request"}
        outputs = {"COUNT": [len(found["videos"])], "VERSION": [found["version"]], "ARM": [found["arm"]],
                   "VIDEO_ID": found["videos"], "LOG_PROB": found["log_probs"]}  # fmt: skip
        tensors = [{"name": name, "data": data} for name, data in outputs.items()]
        return 200, {"model_version": str(self.ready), "outputs": tensors}
