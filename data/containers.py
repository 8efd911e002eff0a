"""Video containers by their bytes: which one a file is, and whether it ends where it says it does.

FFmpeg plays what it finds and says nothing of what is missing. A file that was cut (a download that broke off, a full
disk) still shows in its structure, since every container but raw streams says how long its parts are: the walks here
read those lengths, and the checksums of the containers that have any (Matroska as FFmpeg writes it, Ogg; of GIF how
many pixels each picture unpacks to), and no picture. What is cut exactly between two frames of a stream without an
index (TS, MPEG program streams) leaves no trace in any byte.

The demuxer is chosen here too, by first bytes: FFmpeg's own choice looks at the name, where `%d` and `*` are patterns
that open other files.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

MAGIC = {  # FFmpeg's demuxer: (offset, first bytes)
    "mov": (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")),
    "matroska": (0, (b"\x1aE\xdf\xa3",)),
    "avi": (8, (b"AVI ",)),
    "gif": (0, (b"GIF87a", b"GIF89a")),
    "mpeg": (0, (b"\x00\x00\x01\xba",)),
    "mpegvideo": (0, (b"\x00\x00\x01\xb3",)),
    "mpegts": (0, (b"\x47",)),
    "flv": (0, (b"FLV\x01",)),
    "ogg": (0, (b"OggS",)),
    "asf": (0, (b"0&\xb2u",)),
}
KNOWN = "mp4/mov, matroska/webm, avi, gif, mpeg, mpeg-ts, flv, ogg, asf/wmv"


HEAD = 200


def container_of(head: bytes) -> str | None:
    """The demuxer for a file that starts with these HEAD bytes; None where no container is known by them."""
    if head[4:5] == head[196:197] == b"\x47":  # packets of cameras and Blu-ray discs: a time before each
        return "mpegts"
    return next((name for name, (at, magics) in MAGIC.items() if head[at:].startswith(magics)), None)


def missing_part(path: Path, container: str) -> str:
    """What the file lacks by its own account, `its last box ends at byte 900 of 700`; empty if it is whole."""
    walk = _WALKS.get(container)
    if walk is None:
        return ""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return walk(content)
        except IndexError:
            return f"ends within the header of a part, at byte {len(content):,}"


def _over(what: str, end: int, size: int) -> str:
    return f"{what} ends at byte {end:,}, the file has {size:,}" if end > size else ""


def _boxes(content: mmap.mmap) -> str:
    """MP4, MOV: boxes of known kinds up to the end; the samples of a fragment follow it."""
    at, size, kind = 0, len(content), b""
    while at + 8 <= size:
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        if length == 1:
            length = int.from_bytes(content[at + 8 : at + 16])
        if length == 0:
            return ""
        if length < 8 or not kind.isalnum():
            return ""  # bytes after the last box: players ignore them too
        if at + length > size:
            return _over(f"its box {kind.decode()!r}", at + length, size)
        at += length
    return "ends after the table of a fragment, without its frames" if kind == b"moof" else ""


_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_LEVEL1 = {  # SeekHead, Info, Tracks, Cluster, Cues, Attachments, Chapters, Tags
    bytes.fromhex(i)
    for i in ("114d9b74", "1549a966", "1654ae6b", "1f43b675", "1c53bb6b", "1941a469", "1043a770", "1254c367")
}
_EVERYWHERE = {b"\xec", b"\xbf"}  # Void, CRC-32
_IN_CLUSTER = {bytes.fromhex(i) for i in ["e7", "a3", "a0", "ab", "a7", "af", "5854"]}


def _element(content: mmap.mmap, at: int) -> tuple[bytes, int, int | None]:
    """Id, start of the body and its length (None: not known when it was written) of the EBML element at `at`."""
    width = 9 - content[at].bit_length()
    name = content[at : at + width]
    at += width
    width = 9 - content[at].bit_length()
    length = int.from_bytes(content[at : at + width]) & ((1 << 7 * width) - 1)
    return name, at + width, None if length == (1 << 7 * width) - 1 else length


def _ebml(content: mmap.mmap) -> str:
    """Matroska, WebM: the segment, its elements, and the blocks of each cluster."""
    size = len(content)
    _, body, length = _element(content, 0)
    name, at, length = _element(content, body + (length or 0))
    if name != _SEGMENT:
        return f"no segment where its header ends, at byte {body:,}"
    if length is not None and at + length > size:
        return _over("its segment", at + length, size)
    end = size if length is None else at + length
    while at < end:
        name, body, length = _element(content, at)
        if name not in _LEVEL1 | _EVERYWHERE:
            return f"damaged at byte {at:,}: no element of a segment is there"
        if length is None:
            return ""  # written live
        if body + length > end:
            return _over("its last cluster", body + length, end)
        if name == _CLUSTER and (fault := _blocks(content, body, body + length)):
            return fault
        at = body + length
    return ""


_CHECKSUM = b"\xbf\x84"  # CRC-32, of 4 bytes: of all that follows it in its cluster


def _blocks(content: mmap.mmap, at: int, end: int) -> str:
    if content[at : at + 2] == _CHECKSUM:
        at += 6
        if zlib.crc32(content[at:end]).to_bytes(4, "little") != content[at - 4 : at]:
            return f"damaged: the checksum of its cluster at byte {at:,} is another"
    while at < end:
        name, body, length = _element(content, at)
        if name not in _IN_CLUSTER | _EVERYWHERE or length is None or body + length > end:
            return f"damaged at byte {at:,}: no block of a cluster is there"
        at = body + length
    return ""


def _riff(content: mmap.mmap) -> str:
    return _over("its RIFF chunk", 8 + int.from_bytes(content[4:8], "little"), len(content))


def _gif(content: mmap.mmap) -> str:
    """Blocks up to the trailer."""

    def table(flags: int) -> int:
        return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0

    def chain(at: int) -> int:
        while content[at]:
            at += content[at] + 1
        return at + 1

    at = 13 + table(content[10])
    while content[at] != 0x3B:
        if content[at] == 0x21:
            at = chain(at + 2)
        elif content[at] == 0x2C:
            data = at + 10 + table(content[at + 9])
            width, height = struct.unpack("<HH", content[at + 5 : at + 9])
            end = chain(data + 1)
            pixels = _unpacked(_joined(content, data + 1), content[data])
            if pixels != width * height:
                return f"damaged: a picture before byte {end:,} holds {pixels:,} of {width * height:,} pixels"
            at = end
        else:
            return f"damaged at byte {at:,}: no block of a GIF is there"
    return ""


def _joined(content: mmap.mmap, at: int) -> bytes:
    """The sub-blocks of a GIF from `at` on as one."""
    parts = []
    while length := content[at]:
        parts.append(content[at + 1 : at + 1 + length])
        at += length + 1
    return b"".join(parts)


def _unpacked(data: bytes, depth: int) -> int:
    """How many pixels the codes of a GIF's picture stand for, up to one that stands for nothing."""
    if not 1 <= depth <= 11:
        return 0
    clear, stop = 1 << depth, (1 << depth) + 1
    lengths = [1] * (stop + 1)  # pixels of each code
    width, value, held, pixels, last = depth + 1, 0, 0, 0, 0
    for byte in data:
        value |= byte << held
        held += 8
        while held >= width:
            code, value, held = value & ((1 << width) - 1), value >> width, held - width
            if code == clear:
                del lengths[stop + 1 :]
                width, last = depth + 1, 0
                continue
            known = len(lengths)
            if code == stop or code > known or (code == known and not last):
                return pixels
            length = lengths[code] if code < known else last + 1
            if last and known < 4096:
                lengths.append(last + 1)
                if known + 1 == 1 << width and width < 12:
                    width += 1
            pixels, last = pixels + length, length
    return pixels


def _flv(content: mmap.mmap) -> str:
    """Tags up to the end; and the size of the file, where its metadata knows it."""
    at, size = int.from_bytes(content[5:9]) + 4, len(content)
    key = b"\x00\x08filesize\x00"
    if (found := content.find(key, 0, 65536)) >= 0:
        (stated,) = struct.unpack(">d", content[found + len(key) : found + len(key) + 8])
        if size < stated < 2**62:
            return _over("by its header it", int(stated), size)
    while at + 11 <= size:
        if content[at] & 0x1F not in (8, 9, 18):
            return f"damaged at byte {at:,}: no tag is there"
        end = at + 11 + int.from_bytes(content[at + 1 : at + 4])
        if end > size:
            return _over("its last tag", end, size)
        written = (end - at, end - at - 1, end - at - 11, 0)  # by the book, and as writers get it wrong
        if end + 4 <= size and int.from_bytes(content[end : end + 4]) not in written:
            return f"damaged at byte {end:,}: the tag before it has another length"
        at = end + 4
    return _over("its last tag", at if at > size else at + 11, size) if at != size else ""


def _transport(content: mmap.mmap) -> str:
    size = len(content)
    packet = next((n for n, at in ((188, 0), (192, 4), (204, 0)) if size > n + at and content[n + at] == 0x47), 188)
    return f"its last packet has {size % packet} of {packet} bytes" if size % packet else ""


def _program(content: mmap.mmap) -> str:
    """MPEG program streams: packs and packets up to the end, or to where something else begins."""
    at, size = 0, len(content)
    while at + 4 <= size and content[at : at + 3] == b"\x00\x00\x01":
        code = content[at + 3]
        if code == 0xB9:
            length = 4
        elif code == 0xBA:
            length = 14 + (content[at + 13] & 7) if content[at + 4] >> 6 == 1 else 12
        else:
            length = 6 + int.from_bytes(content[at + 4 : at + 6])
        if at + length > size:
            return _over("its last packet", at + length, size)
        at += length
    return _over("its last packet", at + 4, size) if at < size < at + 4 else ""


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> bytes:
    """CRC-32 of a page, whose bits Ogg takes from the left and zlib from the right; both start from 0 here."""
    found = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return found.to_bytes(4, "big").translate(_MIRRORED)


def _ogg(content: mmap.mmap) -> str:
    """Pages: their lengths, checksums and numbers, and that each stream ends."""
    at, size = 0, len(content)
    numbers: dict[bytes, int] = {}
    unended: set[bytes] = set()
    while at < size:
        if content[at : at + 4] != b"OggS"[: size - at]:
            return f"damaged at byte {at:,}: no page is there"
        body = at + 27 + content[at + 26]
        end = body + sum(content[at + 27 : body])
        if end > size:
            return _over("its last page", end, size)
        page, stream, number = content[at:end], content[at + 14 : at + 18], content[at + 18 : at + 22]
        if _ogg_checksum(page[:22] + bytes(4) + page[26:]) != page[22:26]:
            return f"damaged: the checksum of its page at byte {at:,} is another"
        count = int.from_bytes(number, "little")
        if numbers.get(stream, count - 1) != count - 1 and not page[5] & 2:  # where a stream begins, it counts anew
            return f"lacks pages before byte {at:,}"
        numbers[stream] = count
        (unended.discard if page[5] & 4 else unended.add)(stream)
        at = end
    return "its last page does not end its stream" if unended else ""


_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _asf(content: mmap.mmap) -> str:
    at = content.find(_FILE_PROPERTIES, 0, 65536)
    live = at < 0 or content[at + 88] & 1  # written live: it knows no size
    return "" if live else _over("by its header it", int.from_bytes(content[at + 40 : at + 48], "little"), len(content))


_WALKS: dict[str, Callable[[mmap.mmap], str]] = {
    "mov": _boxes,
    "matroska": _ebml,
    "avi": _riff,
    "gif": _gif,
    "flv": _flv,
    "mpegts": _transport,
    "mpeg": _program,
    "ogg": _ogg,
    "asf": _asf,
}
