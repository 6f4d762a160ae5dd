"""A proxy in front of an S3 server: it counts requests, and kills, delays, refuses or drops what a test asks it to."""

from __future__ import annotations

import http.client
import http.server
import threading
from contextlib import contextmanager


class Proxy:
    """What happens to requests: `fault` is called with the number of each, before it is passed on.

    It returns None to pass the request on, a status to answer with that, or a function that is called once the server
    has answered and before its client is.
    """

    def __init__(self, port):
        self.port, self.count, self.seen, self.fault = port, 0, [], lambda _: None
        self.lock = threading.Lock()
        self.address = ""

    def forget(self):
        """Count from the beginning, without faults."""
        self.count, self.seen, self.fault = 0, [], lambda _: None


def _handler(proxy):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with proxy.lock:
                proxy.count += 1
                number = proxy.count
                proxy.seen.append(f"{self.command} {self.path}")
            action = proxy.fault(number)
            if isinstance(action, int):
                self._answer(action, [], b"<Error><Code>SlowDown</Code><Message>Please try again</Message></Error>")
                return
            server = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                server.putheader(name, value)
            server.endheaders(body)
            answer = server.getresponse()
            content = answer.read()
            if action is not None:
                action()
            self._answer(answer.status, answer.getheaders(), content)
            server.close()

        def _answer(self, status, headers, content):
            try:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                told = {name.lower(): value for name, value in headers}.get("content-length")
                self.send_header("Content-Length", told if told and self.command == "HEAD" else str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the client is gone
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    return Handler


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing: a client that was killed has reset its connection."""


@contextmanager
def in_front_of(port):
    """Run a proxy in front of a server on a port of loopback."""
    proxy = Proxy(port)
    with _Server(("127.0.0.1", 0), _handler(proxy)) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        proxy.address = f"http://127.0.0.1:{serving.server_port}"
        yield proxy
        serving.shutdown()
