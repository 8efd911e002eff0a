"""What travels over HTTP, for all servers and clients of ours: pictures as base64, and JSON behind an address."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmrl.errors import ConfigError, MMRLError

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 50_000_000
MOST_BASE64 = 48 * 2**20
MOST_BYTES = 256 * 2**20
"""Of a body of JSON."""
MOST_PORT = 65535


def to_base64(image: Any, kind: str = "PNG") -> str:
    """A PIL image, encoded."""
    held = io.BytesIO()
    image.convert("RGB").save(held, kind)
    return base64.b64encode(held.getvalue()).decode()


def from_base64(text: Any, what: str = "image_b64") -> Any:
    """A PIL image; ValueError for what is none, of another format than PNG, JPEG and WebP, or too large."""
    from PIL import Image

    if not isinstance(text, str) or len(text) > MOST_BASE64:
        raise ValueError(f"{what} is no base64 text of at most {MOST_BASE64 >> 20} MiB")
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        image.load()
    except Exception as error:
        raise ValueError(f"{what} is no {', '.join(FORMATS)}: {error}") from None
    return image


class JsonServer:
    """Functions of JSON behind an address: POST to a path of `posts`, and GET /health.

    posts    {path: what its body is answered with}; a ValueError or an error of ours is told as 422
    key_env  the environment variable with a key that requests must bring as a bearer token
    port     0: any free one
    """

    def __init__(
        self, posts: Mapping[str, Callable[[Any], Any]], health: Callable[[], Any], *, host: str, port: int,
        key_env: str | None = None,
    ) -> None:  # fmt: skip
        if key_env and not os.environ.get(key_env):
            raise ConfigError(f"key_env: the environment variable {key_env} is not set")
        self.posts, self.health, self.key = posts, health, os.environ[key_env] if key_env else None
        try:
            self.http = ThreadingHTTPServer((host, port), _handler(self))
        except (OSError, OverflowError) as error:
            raise not_listening(host, port, error) from None
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        host, port = self.http.server_address[:2]
        return f"http://{host!s}:{port}"

    def serve_forever(self) -> None:
        self.http.serve_forever()

    def close(self) -> None:
        """From another thread than the one that serves."""
        self.http.shutdown()
        self.http.server_close()


def not_listening(host: str, port: int, error: OSError | OverflowError) -> ConfigError:
    """For an address that is taken or not this machine's, and for what is no port."""
    if not 0 <= port <= MOST_PORT:
        return ConfigError(f"port {port}: expected one from 0, any free one, to {MOST_PORT}")
    return ConfigError(f"host {host}, port {port}: {getattr(error, 'strerror', None) or error}")


def free_address(host: str, port: int) -> int:
    """The port to listen on: `port`, or a free one for 0. ConfigError where nobody could listen."""
    try:
        with socket.create_server((host, port)) as found:
            return int(found.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise not_listening(host, port, error) from None


def _handler(server: JsonServer) -> type[BaseHTTPRequestHandler]:
    known = f"{', '.join(f'POST {path}' for path in server.posts)}, or GET /health"

    class Handler(BaseHTTPRequestHandler):
        timeout = 60

        def do_GET(self) -> None:
            if self.path != "/health":
                return self._say(404, {"error": known})
            self._say(200, server.health())

        def do_POST(self) -> None:
            if self.path not in server.posts:
                return self._say(404, {"error": known})
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                return self._say(401, {"error": "a key is needed: Authorization: Bearer ..."})
            if self.headers.get_content_type() != "application/json":
                return self._say(415, {"error": "expected application/json"})
            size = self.headers.get("Content-Length", "")
            if not size.isdigit() or int(size) > MOST_BYTES:
                return self._say(413, {"error": f"expected a body of at most {MOST_BYTES >> 20} MiB"})
            try:
                self._say(200, server.posts[self.path](json.loads(self.rfile.read(int(size)))))
            except (ValueError, RecursionError, MMRLError) as error:
                self._say(422, {"error": str(error)[:500]})

        def _say(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing: what is asked is the sender's."""

    return Handler
