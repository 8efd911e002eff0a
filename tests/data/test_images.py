"""Images: upright RGB of allowed formats, refused by header, and only from where they may come."""

import base64
import io
import os
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from mmrl.data.images import (
    MAX_PIXELS,
    MediaAccess,
    Sizing,
    data_uri,
    media_identity,
    media_image_size,
    open_image,
    open_media_image,
)
from mmrl.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


RED = Image.new("RGB", (6, 4), (255, 0, 0))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_allowed_formats_open_as_rgb(tmp_path, kind):
    path = tmp_path / "image.bin"  # the content decides, not the name
    path.write_bytes(encoded(RED, kind))
    for source in (path, path.read_bytes()):
        image = open_image(source)
        assert (image.mode, image.size) == ("RGB", (6, 4))
        assert np.abs(np.asarray(image, int)[0, 0] - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("kind", ["ICO", "PPM", "EPS", "PDF"])
def test_other_formats_are_refused(kind):
    with pytest.raises(DataError, match="not an image in one of PNG, JPEG, WEBP, BMP, GIF"):
        open_image(encoded(RED, kind))


def test_a_tiff_is_read_as_datasets_stores_palette_images_and_not_otherwise():
    stored, packed = io.BytesIO(), io.BytesIO()
    RED.convert("P").save(stored, "TIFF")
    RED.save(packed, "TIFF", compression="tiff_lzw")
    assert open_image(stored.getvalue()).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DataError, match="a compressed TIFF"):
        open_image(packed.getvalue())


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its 57 bytes hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8001, 8000), (10_000, 10_000), (50_000, 50_000)])
def test_sizes_are_refused_by_the_header(size):
    """Past our limit, past Pillow's warning, past Pillow's error: no decoding in any of them."""
    with pytest.raises(DataError, match="pixels"):
        open_image(bomb(*size))


def test_the_limit_lies_below_where_pillow_only_warns():
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match="6x4 is 24 pixels, the limit is 23"):
        open_image(encoded(RED), max_pixels=23)
    assert open_image(encoded(RED), max_pixels=24).size == (6, 4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_cut_short_images_are_errors(tmp_path, kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = tmp_path / "cut.img"
    path.write_bytes(encoded(noise, kind)[:-200])
    with pytest.raises(DataError, match=r"cut\.img: "):
        open_image(path)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert np.asarray(open_image(encoded(clear))).min() == 255
    palette = Image.new("RGB", (2, 2), (0, 0, 0)).quantize(2)
    assert np.asarray(open_image(encoded(palette, transparency=0))).min() == 255


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    assert open_image(encoded(RED, "JPEG", exif=exif)).size == (4, 6)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert np.asarray(open_image(encoded(grey)))[0, :, 0].tolist() == [0, 128, 255]


# ---- where from --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """data/a.png, data/link.png -> ../secret.png, secret.png"""
    root = tmp_path / "data"
    root.mkdir()
    RED.save(root / "a.png")
    RED.save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", root / "link.png")
    return root


def test_paths_start_from_the_folder_and_stay_in_it(folder):
    access = MediaAccess(folder)
    for inside in ("a.png", "./a.png", "../data/a.png", str(folder / "a.png"), f"file://{folder / 'a.png'}"):
        assert access.resolve(inside) == folder / "a.png"
    for outside in ("../secret.png", str(folder.parent / "secret.png"), "link.png", "/etc/hostname"):
        with pytest.raises(DataError, match="leads outside the dataset's folder"):
            access.resolve(outside)
        if outside != "/etc/hostname":
            assert MediaAccess(folder, allow_outside=True).resolve(outside).name == "secret.png"
    with pytest.raises(DataError, match=r"'b\.png' does not exist"):
        access.resolve("b.png")
    with pytest.raises(DataError, match="control character"):
        access.resolve("a\0.png")


def test_an_image_may_be_bytes_a_mapping_base64_or_open(folder):
    access, content = MediaAccess(folder), encoded(RED)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    for value in ("a.png", content, {"bytes": content, "path": None}, {"bytes": None, "path": "a.png"}, uri, RED):
        assert open_media_image(value, access).tobytes() == RED.tobytes()
    for value, message in [
        (5, "expected a path, bytes, a data: address or an image, got int 5"),
        ({"path": None}, "expected a path"),
        ("data:image/png,xyz", "must read data:TYPE;base64"),
        ("data:image/png;base64,@@@", "not base64"),
    ]:
        with pytest.raises(DataError, match=message):
            open_media_image(value, access)
    assert data_uri(uri) == content


def test_identity_is_of_content_or_of_the_place_as_written(folder):
    content = encoded(RED)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    same = {media_identity(v) for v in (content, {"bytes": content, "path": "x.png"}, uri)}
    assert len(same) == 1
    different = [RED, Image.new("RGB", (4, 6), (255, 0, 0)), "a.png", ["a.png"], ["a.png", "b.png"]]
    different += [{"path": "a.mp4", "start": 0.0}, {"path": "a.mp4", "start": 1.0}, {"frames": ["a.png"], "fps": 2}]
    assert len({media_identity(v) for v in different} | same) == len(different) + 1


def test_addresses_are_fetched_only_where_allowed(folder):
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(encoded(RED))

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(DataError, match=r"data\.allow_urls=true"):
            open_media_image(f"{url}/a.png", MediaAccess(folder))
        assert asked == []
        assert open_media_image(f"{url}/a.png", MediaAccess(folder, allow_urls=True)).size == (6, 4)
        with pytest.raises(DataError, match="404"):
            open_media_image(f"{url}/b.png", MediaAccess(folder, allow_urls=True))
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("size", "fine"), [((2000, 5), False), ((5, 2000), False), ((1000, 5), True)])
def test_absurd_shapes_are_refused_by_the_header(size, fine):
    picture = Image.new("RGB", size)
    for value in (picture, encoded(picture, "PNG")):
        if fine:
            assert open_media_image(value, MediaAccess()).size == media_image_size(value, MediaAccess()) == size
        else:
            with pytest.raises(DataError, match=f"{size[0]}x{size[1]} is more than 200 times longer than wide"):
                open_media_image(value, MediaAccess())


def test_headers_tell_the_upright_size():
    turned = Image.new("RGB", (6, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    out = io.BytesIO()
    turned.save(out, "JPEG", exif=exif)
    assert media_image_size(out.getvalue(), MediaAccess()) == open_image(out.getvalue()).size == (4, 6)


SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.sampled_from([14, 28, 32]), st.integers(1, 4000), st.integers(1, 400))
def test_sizing_is_that_of_the_models_processor(width, height, factor, low, more):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    assume(max(width, height) <= 200 * min(width, height))
    bounds = {"min_pixels": low * 28, "max_pixels": (low + more) * 28 * 28}
    tall, wide = smart_resize(height, width, factor, **bounds)
    assert Sizing(factor, **bounds).within((width, height)) == (wide, tall)
