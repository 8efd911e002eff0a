"""JSON behind an address, and pictures as base64: what is answered, and each way to be refused."""

import json
import threading
import urllib.error
import urllib.request

import pytest
from PIL import Image

from mmrl.errors import ConfigError, DataError
from mmrl.over_http import JsonServer, free_address, from_base64, to_base64

JSON = {"Content-Type": "application/json"}


def halved(body):
    if body == 13:
        raise DataError("13 is not halved here")
    return {"half": int(body) / 2}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("HALVES_KEY", "secret")
    served = JsonServer({"/half": halved}, lambda: {"well": True}, host="127.0.0.1", port=0, key_env="HALVES_KEY")
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.close()


def said(server, path, body=None, **headers):
    """(status, answer); a GET without a body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, body, headers)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_it_answers_whoever_brings_the_key(server):
    key = JSON | {"Authorization": "Bearer secret"}
    assert said(server, "/half", b"8", **key) == (200, {"half": 4.0})
    assert said(server, "/health") == (200, {"well": True})


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [("/half", b"8", JSON, 401), ("/third", b"8", JSON, 404), ("/third", None, {}, 404),
     ("/half", b"8", {"Authorization": "Bearer secret", "Content-Type": "text/plain"}, 415),
     ("/half", b"{", JSON | {"Authorization": "Bearer secret"}, 422),
     ("/half", b"13", JSON | {"Authorization": "Bearer secret"}, 422)],
)  # fmt: skip
def test_everything_else_is_refused_with_a_reason(server, path, body, headers, status):
    found, answer = said(server, path, body, **headers)
    assert found == status and answer["error"]


def test_a_key_that_is_not_set_and_a_port_that_is_taken_are_one_line(server):
    with pytest.raises(ConfigError, match="NOBODY is not set"):
        JsonServer({}, dict, host="127.0.0.1", port=0, key_env="NOBODY")
    with pytest.raises(ConfigError, match="port"):
        JsonServer({}, dict, host="127.0.0.1", port=server.http.server_address[1])


def test_pictures_travel_whole_and_others_are_named():
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    assert list(from_base64(to_base64(picture)).getdata()) == [(1, 2, 3)] * 6
    assert from_base64("data:image/png;base64," + to_base64(picture)).size == (3, 2)
    for broken in (None, 7, "no base64", "eA==", to_base64(picture)[:40]):
        with pytest.raises(ValueError, match="condition"):
            from_base64(broken, "condition")


@pytest.mark.parametrize("listen", [lambda host, port: JsonServer({}, dict, host=host, port=port), free_address])
def test_where_nobody_can_listen_is_one_line(server, listen):
    """What is no port, one that is taken, a host that is another machine's."""
    taken = server.http.server_address[1]
    for host, port, says in (
        ("127.0.0.1", 99999, "port 99999: expected one from 0, any free one, to 65535"),
        ("127.0.0.1", taken, f"host 127.0.0.1, port {taken}: Address already in use"),
        ("192.0.2.1", 0, "host 192.0.2.1, port 0: Cannot assign requested address"),
    ):
        with pytest.raises(ConfigError, match=says) as raised:
            listen(host, port)
        assert "\n" not in str(raised.value)
    assert 0 < free_address("127.0.0.1", 0) < 65536
