"""A real server for tests: answers POSTs from a list, or by a function, and remembers what it was asked."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Asked:
    """What arrived: bodies and headers, in order; `most` is the largest number of requests at once."""

    def __init__(self):
        self.bodies, self.headers, self.now, self.most = [], [], 0, 0
        self.lock = threading.Lock()


@contextlib.contextmanager
def serving(answer):
    """(url, Asked). `answer(body, number) -> (status, headers, bytes)`, or what is sent as JSON with 200."""
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with asked.lock:
                number = len(asked.bodies)
                asked.bodies.append(body)
                asked.headers.append(dict(self.headers))
                asked.now += 1
                asked.most = max(asked.most, asked.now)
            try:
                given = answer(body, number)
            finally:
                with asked.lock:
                    asked.now -= 1
            status, headers, data = given if isinstance(given, tuple) else (200, {}, json.dumps(given).encode())
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def chat(text):
    """A chat completion that says `text`."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}
