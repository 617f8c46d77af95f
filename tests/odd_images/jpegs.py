"""The JPEG files of the collection."""

from __future__ import annotations

import base64
import struct
from typing import Any, Literal

import numpy as np
from PIL import Image

from odd_images import jpeg_writer as writer
from odd_images.photos import encoded, exif, photo, planes

Good = dict[str, tuple[bytes, int]]  # content and orientation
Refused = dict[str, tuple[bytes, str, Literal["header", "decoder"]]]

# Made once with `cjpeg -arithmetic` of libjpeg-turbo 2.1.5 from a colour ramp: Pillow does not write arithmetic coding.
_ARITHMETIC = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAx
NDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy
MjIyMjIyMjL/yQARCAAYACgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ALdX/QoNJ0uQ7eB/IlEnlPxOevYJ
c/zzlCN+5/d+tXmCNTELVJ3bLViHBu/R+WN5UIKNwItUTctxnGj9QKqGdiUuMbdPg70XbW/w15dww+m9I3pyxL9MitXA0DGdcche
NcNQ/wBMVOj/2Q=="""

_SAMPLINGS = {
    "444": [(1, 1), (1, 1), (1, 1)],
    "422": [(2, 1), (1, 1), (1, 1)],
    "420": [(2, 2), (1, 1), (1, 1)],
    "440": [(1, 2), (1, 1), (1, 1)],
    "411": [(4, 1), (1, 1), (1, 1)],
    "410": [(4, 2), (1, 1), (1, 1)],
    "441": [(1, 4), (1, 1), (1, 1)],
    "311": [(3, 1), (1, 1), (1, 1)],
    "444-as-21": [(2, 1), (2, 1), (2, 1)],
    "422-as-22": [(2, 2), (1, 2), (1, 2)],
    "mixed": [(2, 2), (2, 1), (1, 2)],
    "sharp-chroma": [(1, 1), (2, 2), (2, 2)],
}


def good() -> Good:
    """Those with pixels."""
    found = {f"jpeg-{name}.jpg": (content, 1) for name, content in {**_plain(), **_coloured(), **_framed()}.items()}
    for name, (content, orientation) in _turned().items():
        found[f"jpeg-exif-{name}.jpg"] = (content, orientation)
    return found


def refused() -> Refused:
    """Those without."""
    whole, fine = _jpeg(), encoded(photo(), "JPEG", quality=90, progressive=True)
    frame = whole.index(b"\xff\xc0")
    scan = whole.index(b"\xff\xda")
    deep = bytearray(whole)
    deep[frame + 4] = 12
    flat = bytearray(whole)
    flat[frame + 5 : frame + 7] = b"\0\0"
    huge = bytearray(whole)
    huge[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    two = writer.write(planes("YCbCr")[:2], [(1, 1), (1, 1)])
    found: dict[str, tuple[bytes, str]] = {
        "cut-in-the-magic": (whole[:2], "is truncated"),
        "cut-before-the-frame": (whole[: frame + 6], "is truncated"),
        "cut-before-the-scan": (whole[: scan + 4], "is truncated"),
        "cut-in-the-middle": (whole[: (scan + len(whole)) // 2], "is truncated"),
        "cut-before-the-end": (whole[:-2], "is truncated"),
        "cut-progressive": (fine[: len(fine) * 3 // 4], "is truncated"),
        "zero-filled-tail": (whole[: len(whole) * 2 // 3] + bytes(len(whole) // 3), "is truncated"),
        "cut-behind-a-thumbnail": (_with_thumbnail()[: -len(whole) // 2], "is truncated"),
        "12-bits": (bytes(deep), "12 bits"),
        "no-height": (bytes(flat), "0 x 71 pixels"),
        "too-large": (bytes(huge), "65,535 x 65,535 pixels"),
        "two-components": (two, "2 components"),
        "no-frame": (whole[:2] + whole[scan:], "no frame header"),
        "text-behind-the-magic": (b"\xff\xd8 and so on", "no marker"),
    }
    return {f"jpeg-{name}.jpg": (content, problem, "header") for name, (content, problem) in found.items()}


def _jpeg(**options: Any) -> bytes:
    return encoded(photo(), "JPEG", **{"quality": 90, **options})


def _plain() -> dict[str, bytes]:
    colour = planes("YCbCr")
    found = {f"baseline-{name}": writer.write(colour, factors) for name, factors in _SAMPLINGS.items()}
    found |= {f"scans-{name}": writer.write(colour, _SAMPLINGS[name], interleaved=False) for name in ("444", "420")}
    for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
        found[f"pillow-{name}"] = _jpeg(subsampling=subsampling)
        found[f"progressive-{name}"] = _jpeg(subsampling=subsampling, progressive=True)
        found[f"restarts-{name}"] = _jpeg(subsampling=subsampling, restart_marker_blocks=2)
    found |= {
        "grey": encoded(photo().convert("L"), "JPEG", quality=90),
        "grey-progressive": encoded(photo().convert("L"), "JPEG", progressive=True),
        "grey-as-22": writer.write(planes("L"), [(2, 2)]),
        "lossless-grey": writer.write_lossless(planes("L")[0]),
        "arithmetic": base64.b64decode(_ARITHMETIC),
        "optimized": _jpeg(optimize=True),
        "quality-1": _jpeg(quality=1),
        "quality-100": _jpeg(quality=100),
        "restart-rows": _jpeg(restart_marker_rows=1),
        "restarts-progressive": _jpeg(restart_marker_blocks=3, progressive=True),
        "extended": writer.write(colour, _SAMPLINGS["420"], marker=0xC1),
        "wide-tables": writer.write(colour, _SAMPLINGS["420"], marker=0xC1, wide_tables=True),
    }
    for height, width in ((1, 1), (1, 40), (40, 1), (2, 2), (8, 8), (16, 16), (17, 33), (3, 130), (130, 3)):
        found[f"{height}x{width}"] = encoded(photo(height, width), "JPEG", quality=90)
    return found


def _coloured() -> dict[str, bytes]:
    """Where decoders disagree about the colours that components mean."""
    three, rgb, cmyk = _SAMPLINGS["444"], planes("RGB"), planes("CMYK")
    four = [*three, (1, 1)]
    inverted = [255 - plane for plane in cmyk]  # as Adobe's programs store CMYK
    inks = Image.merge("RGB", [Image.fromarray(plane) for plane in cmyk[:3]])
    ycck = [*(np.array(plane) for plane in inks.convert("YCbCr").split()), inverted[3]]
    letters = tuple(b"RGB")
    return {
        "no-marker": writer.write(planes("YCbCr"), three, head=b""),
        "ids-012": writer.write(planes("YCbCr"), three, head=b"", ids=(0, 1, 2)),
        "ids-of-letters-ycc": writer.write(planes("YCbCr"), three, head=b"", ids=tuple(b"YCc")),
        "ids-unusual": writer.write(planes("YCbCr"), three, head=b"", ids=(7, 9, 30)),
        "rgb-ids": writer.write(rgb, three, head=b"", ids=letters),
        "rgb-ids-jfif": writer.write(planes("YCbCr"), three, ids=letters),
        "rgb-adobe-0": writer.write(rgb, three, head=writer.adobe(0)),
        "rgb-adobe-0-420": writer.write(rgb, _SAMPLINGS["420"], head=writer.adobe(0)),
        "rgb-keep": _jpeg(keep_rgb=True),
        "jfif-adobe-0": writer.write(planes("YCbCr"), three, head=writer.JFIF + writer.adobe(0)),
        "adobe-1": writer.write(planes("YCbCr"), three, head=writer.adobe(1)),
        "adobe-1-ids-rgb": writer.write(planes("YCbCr"), three, head=writer.adobe(1), ids=letters),
        "adobe-2": writer.write(planes("YCbCr"), three, head=writer.adobe(2)),
        "adobe-short": writer.write(planes("YCbCr"), three, head=writer.segment(0xEE, b"Adobe\0\x64")),
        "app14-of-another": writer.write(planes("YCbCr"), three, head=writer.segment(0xEE, b"other" + bytes(7))),
        "cmyk-pillow": encoded(photo().convert("CMYK"), "JPEG", quality=90),
        "cmyk-adobe-0": writer.write(inverted, four, head=writer.adobe(0)),
        "cmyk-no-marker": writer.write(cmyk, four, head=b""),
        "cmyk-jfif": writer.write(cmyk, four),
        "ycck-adobe-2": writer.write(ycck, four, head=writer.adobe(2)),
        "ycck-adobe-2-420": writer.write(ycck, [(2, 2), (1, 1), (1, 1), (2, 2)], head=writer.adobe(2)),
        "icc": _jpeg(icc_profile=_profile()),
        "icc-invalid": _jpeg(icc_profile=bytes(200_000)),
        "icc-grey": encoded(photo().convert("L"), "JPEG", icc_profile=_profile()),
    }


def _framed() -> dict[str, bytes]:
    """What surrounds the data."""
    whole = _jpeg()
    frame, scan = whole.index(b"\xff\xc0"), whole.index(b"\xff\xda")
    garbled = bytearray(whole)
    garbled[(scan + len(whole)) // 2 : (scan + len(whole)) // 2 + 8] = b"\x12\x34\x56\x78\x9a\xbc\xde\xf0"
    hole = bytearray(whole)
    hole[(scan + len(whole)) // 2 : (scan + len(whole)) // 2 + 300] = bytes(300)
    tables = writer.segment(0xC4, b"\0" + bytes(16))
    two = photo().resize((20, 20))
    return {
        "fill-bytes": whole[:2] + b"\xff\xff\xff" + whole[2:],
        "zeros-behind": whole + bytes(10),
        "many-zeros-behind": whole + bytes(5000),
        "text-behind": whole + b"<!-- served by a proxy -->" * 9,
        "jpeg-behind": whole + _jpeg(quality=30),
        "two-end-markers": whole + b"\xff\xd9",
        "comment": _jpeg(comment=b"a comment"),
        "empty-table": whole[:frame] + tables + whole[frame:],
        "unknown-segments": whole[:2] + writer.segment(0xEF, bytes(6000)) + whole[2:],
        "mpo": encoded(photo(), "MPO", save_all=True, append_images=[two]),
        "thumbnail": _with_thumbnail(),
        "garbled": bytes(garbled),
        "hole": bytes(hole),
        "comment-behind-the-frame": _behind_the_frame(whole, 0xFE, b"a comment"),
        "adobe-0-behind-the-frame": _behind_the_frame(
            writer.write(planes("RGB"), _SAMPLINGS["444"], head=b""), 0xEE, writer.adobe(0)[4:]
        ),
        "named.png": whole,
        "named.webp": whole,
    }


def _behind_the_frame(content: bytes, marker: int, *contents: bytes) -> bytes:
    """Segments between the frame header of a JPEG and its data."""
    scan = content.index(b"\xff\xda")
    return content[:scan] + b"".join(writer.segment(marker, text) for text in contents) + content[scan:]


def _with_thumbnail() -> bytes:
    thumbnail = encoded(photo(16, 16), "JPEG")
    whole = _jpeg()
    return whole[:2] + writer.segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail) + whole[2:]


def _turned() -> dict[str, tuple[bytes, int]]:
    def block(order: str, *entries: tuple[int, int, int, int], more: bytes = b"\0\0\0\0") -> bytes:
        """An EXIF block of entries (tag, type, count, value): big (>) or little (<) endian."""
        found = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
        for tag, kind, count, value in entries:
            found += struct.pack(order + "HHI", tag, kind, count)
            found += struct.pack(order + ("H2x" if kind == 3 else "I"), value)
        return b"Exif\0\0" + found + more

    whole = _jpeg()

    def with_block(*contents: bytes, content: bytes = whole) -> bytes:
        """The segments behind JFIF's."""
        segments = b"".join(writer.segment(0xE1, text) for text in contents)
        return content[:20] + segments + content[20:]

    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description %s/></x:xmpmeta>"
    six, none = block("<", (0x0112, 3, 1, 6)), block("<", (0x0131, 4, 1, 6))
    found = {str(turn): (_jpeg(exif=exif(turn)), turn) for turn in range(1, 9)}
    found |= {f"{turn}-progressive": (_jpeg(exif=exif(turn), progressive=True), turn) for turn in (3, 6)}
    found |= {f"invalid-{turn}": (_jpeg(exif=exif(turn)), 1) for turn in (0, 9, 65535)}
    return found | {
        "grey-5": (encoded(photo().convert("L"), "JPEG", exif=exif(5)), 5),
        "cmyk-8": (encoded(photo().convert("CMYK"), "JPEG", exif=exif(8)), 8),
        "little-endian": (with_block(six), 6),
        "big-endian": (with_block(block(">", (0x010F, 4, 1, 5), (0x0112, 3, 1, 7))), 7),
        "long": (with_block(block("<", (0x0112, 4, 1, 6))), 6),
        "two-values": (with_block(block("<", (0x0112, 3, 2, 6))), 6),
        "none": (with_block(none), 1),
        "only-of-the-thumbnail": (with_block(block("<", more=struct.pack("<IH2HIH2x", 14, 1, 0x0112, 3, 1, 6))), 1),
        "cut": (with_block(six[:-8]), 1),
        "garbage": (with_block(b"Exif\0\0" + bytes(range(40))), 1),
        "empty": (with_block(b"Exif\0\0"), 1),
        "before-jfif": (whole[:2] + writer.segment(0xE1, six) + whole[2:], 6),
        "behind-9000-bytes": (with_block(b"other" + bytes(9000), six), 6),
        "in-two-segments": (with_block(six[:20], b"Exif\0\0" + six[20:]), 6),
        "twice": (with_block(six, block("<", (0x0112, 3, 1, 3))), 6),
        "xmp-attribute": (with_block(xmp % b'tiff:Orientation="8"'), 8),
        "xmp-and-exif": (with_block(six, xmp % b'tiff:Orientation="8"'), 6),
        "xmp-beside-exif-without": (with_block(none, xmp % b'tiff:Orientation="3"'), 3),
        "xmp-invalid": (with_block(xmp % b'tiff:Orientation="9"'), 1),
        "behind-the-frame": (_behind_the_frame(whole, 0xE1, six), 6),
        "xmp-behind-the-frame": (_behind_the_frame(whole, 0xE1, xmp % b'tiff:Orientation="8"'), 8),
        "long-behind-the-frame": (_behind_the_frame(whole, 0xE1, b"other" + bytes(9000), six), 6),
        "upside-down-and-data-behind": (with_block(block(">", (0x0112, 3, 1, 3))) + bytes(100), 3),
    }


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
