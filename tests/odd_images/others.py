"""The other files of the collection: PNG, TIFF, WebP, GIF, BMP, Netpbm, and what is no image."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from odd_images.jpegs import Good, Refused
from odd_images.photos import HEIGHT, WIDTH, encoded, exif, photo

_PNG = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def good() -> Good:
    """Those with pixels."""
    return {**_pngs(), **_tiffs(), **_further()}


def refused() -> Refused:
    """Those without."""
    png, webp, grey16 = _png(), encoded(photo(), "WEBP"), np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 20
    rgb16 = np.array(photo(), dtype=np.uint16) * 257
    grey16 = grey16.reshape(HEIGHT, WIDTH)
    data = png.index(b"IDAT") + 4
    garbled = bytearray(png)
    garbled[data + 400] ^= 0x55
    header = bytearray(png)
    header[19] ^= 0x55
    unzipped = _png_file(WIDTH, HEIGHT, 8, 2, zlib.compress(bytes(100)))
    too_large = _png_file(60_000, 60_000, 8, 2, zlib.compress(bytes(100)))
    found = {
        "png-cut-in-the-header.png": (png[:20], "is truncated"),
        "png-cut-in-the-data.png": (png[: len(png) // 2], "is truncated"),
        "png-cut-before-the-end.png": (png[:-12], "is truncated"),
        "png-zero-filled-tail.png": (png[: len(png) // 2] + bytes(len(png) // 2), "is truncated"),
        "png-header-damaged.png": (bytes(header), "is a broken PNG"),
        "png-16-bit-grey.png": (encoded(Image.fromarray(grey16), "PNG"), "more than 8 bits"),
        "png-16-bit-rgb.png": (_png_file(WIDTH, HEIGHT, 16, 2, _rows(rgb16.astype(">u2"))), "more than 8 bits"),
        "png-too-large.png": (too_large, "60,000 x 60,000 pixels"),
        "tiff-16-bit-grey.tif": (encoded(Image.fromarray(grey16), "TIFF"), "more than 8 bits"),
        "tiff-16-bit-rgb.tif": (_tiff(rgb16), "more than 8 bits"),
        "tiff-float.tif": (encoded(Image.fromarray(np.ones((4, 5), np.float32)), "TIFF"), "more than 8 bits"),
        "tiff-int32.tif": (encoded(Image.fromarray(np.ones((4, 5), np.int32)), "TIFF"), "more than 8 bits"),
        "tiff-lab.tif": (encoded(Image.new("LAB", (5, 4)), "TIFF"), "LAB"),
        "ppm-maximum-100.ppm": (b"P6 2 1 100\n" + bytes(range(6)), "maximum"),
        "ppm-maximum-65535.ppm": (b"P6 2 1 65535\n" + bytes(range(12)), "maximum"),
        "pgm-maximum-15.pgm": (b"P5 2 1 15\n" + bytes(range(2)), "maximum"),
        "pgm-maximum-1023.pgm": (b"P5 2 1 1023\n" + bytes(range(4)), "maximum"),
        "ppm-text-maximum-9.ppm": (b"P3 2 1 9\n1 2 3 4 5 6\n", "maximum"),
        "empty.jpg": (b"", "is empty"),
        "one-byte.jpg": (b"\xff", "is not an image"),
        "text.jpg": (b"404 not found\n" * 20, "is not an image"),
        "html.jpg": (b"<!DOCTYPE html><html><body>Not found</body></html>\n", "is not an image"),
        "zeros.jpg": (bytes(5000), "is not an image"),
        "postscript.jpg": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
            "is not an image",
        ),
        "xml.png": (b"<?xml version='1.0'?><svg/>", "is not an image"),
        "webp-cut-in-the-header.webp": (webp[:18], "cannot be read as an image"),
        "webp-cut.webp": (webp[: len(webp) // 2], "cannot be read as an image"),
    }
    later = {
        "png-data-damaged.png": (bytes(garbled), "cannot be decoded"),
        "png-too-few-rows.png": (unzipped, "cannot be decoded"),
        "bmp-cut.bmp": (encoded(photo(), "BMP")[:-2000], "cannot be decoded"),
        "gif-cut.jpg": (encoded(photo(), "GIF")[:1500], "cannot be decoded"),
        "tiff-cut.tif": (encoded(photo(), "TIFF")[:-2000], "cannot be decoded"),
        "ppm-cut.ppm": (encoded(photo(), "PPM")[:-2000], "cannot be decoded"),
    }
    refusals: Refused = {name: (content, problem, "header") for name, (content, problem) in found.items()}
    return refusals | {name: (content, problem, "decoder") for name, (content, problem) in later.items()}


def _pngs() -> Good:
    modes = {mode: photo().convert(mode) for mode in ("RGB", "L", "1", "P", "RGBA", "LA")}
    modes["RGBA"].putalpha(modes["L"])
    modes["LA"].putalpha(modes["L"])
    png, rgb = _png(), np.array(photo())
    few = photo().quantize(4)
    text, profile = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    text.add_text("Software", "a program")
    block = exif(6).tobytes().hex()
    profile.add_text("Raw profile type exif", f"\nexif\n{len(block) // 2:8}\n{block}\n")
    damaged_end = bytearray(png)
    damaged_end[-1] ^= 0x55
    upright = {
        **{f"mode-{mode.lower()}": encoded(image, "PNG") for mode, image in modes.items()},
        "palette-transparent": encoded(modes["P"], "PNG", transparency=3),
        "palette-transparencies": encoded(modes["P"], "PNG", transparency=bytes(range(256))),
        "rgb-transparent": encoded(photo(), "PNG", transparency=(1, 2, 3)),
        "grey-transparent": encoded(modes["L"], "PNG", transparency=7),
        "palette-4-bits": encoded(few, "PNG", bits=4),
        "palette-2-bits": encoded(few, "PNG", bits=2),
        "palette-1-bit": encoded(photo().quantize(2), "PNG", bits=1),
        **{f"grey-{bits}-bits": _grey_png(bits) for bits in (1, 2, 4)},
        "interlaced": _interlaced(rgb),
        "gamma": _with(png, b"gAMA", struct.pack(">I", 100_000)),
        "gamma-and-chromaticity": _with(
            png, b"gAMA", struct.pack(">I", 45455), b"cHRM", struct.pack(">8I", *[31270, 32900] * 4)
        ),
        "srgb": _with(png, b"sRGB", b"\0"),
        "significant-bits": _with(png, b"sBIT", b"\5\6\5"),
        "background": _with(png, b"bKGD", bytes(6)),
        "icc": encoded(photo(), "PNG", icc_profile=bytes(500)),
        "text": encoded(photo(), "PNG", pnginfo=text),
        "resolution": encoded(photo(), "PNG", dpi=(300, 300)),
        "animated": encoded(photo(), "PNG", save_all=True, append_images=[photo().rotate(180)]),
        "many-chunks": _png_file(WIDTH, HEIGHT, 8, 2, _rows(rgb), chunk=50),
        "large-chunk-before": _with(png, b"zzZz", bytes(10_000)),
        "bytes-behind": png + b"more" * 3,
        "many-bytes-behind": png + bytes(5000),
        "png-behind": png + encoded(photo(20, 20), "PNG"),
        "end-damaged": bytes(damaged_end),
        "exif-invalid": encoded(photo(), "PNG", exif=exif(9)),
        "1x1": encoded(photo(1, 1), "PNG"),
    }
    found: Good = {f"png-{name}.png": (content, 1) for name, content in upright.items()}
    for turn in (3, 6, 8):
        found[f"png-exif-{turn}.png"] = (encoded(photo(), "PNG", exif=exif(turn)), turn)
    block_bytes = exif(5).tobytes().removeprefix(b"Exif\0\0")
    return found | {
        "png-exif-behind-the-data.png": (_with(png, b"eXIf", block_bytes, before=b"IEND"), 5),
        "png-exif-as-text.png": (encoded(photo(), "PNG", pnginfo=profile), 6),
        "png-xmp.png": (_with(png, b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<a tiff:Orientation="8"/>'), 8),
        "png-named.jpg": (png, 1),
        "png-named.jpeg": (encoded(modes["P"], "PNG"), 1),
    }


def _tiffs() -> Good:
    upright = {
        "rgb": encoded(photo(), "TIFF"),
        "lzw": encoded(photo(), "TIFF", compression="tiff_lzw"),
        "jpeg": encoded(photo(), "TIFF", compression="jpeg"),
        "grey": encoded(photo().convert("L"), "TIFF"),
        "palette": encoded(photo().convert("P"), "TIFF"),
        "one-bit": encoded(photo().convert("1"), "TIFF", compression="group4"),
        "cmyk": encoded(photo().convert("CMYK"), "TIFF"),
        "rgba": encoded(photo().convert("RGBA"), "TIFF"),
        "two-pages": encoded(photo(), "TIFF", save_all=True, append_images=[photo(20, 20)]),
        # Pillow turns a TIFF when it reads its pixels: what is left has no orientation.
        **{f"turned-{turn}": encoded(photo(), "TIFF", tiffinfo={274: turn}) for turn in (1, 3, 6, 8)},
    }
    return {f"tiff-{name}.tif": (content, 1) for name, content in upright.items()}


def _further() -> Good:
    palette, alpha = photo().convert("P"), photo().convert("RGBA")
    alpha.putalpha(photo().convert("L"))
    two = [photo().rotate(180)]
    bits = photo().convert("1")
    upright = {
        "webp-lossy.webp": encoded(photo(), "WEBP"),
        "webp-lossless.webp": encoded(photo(), "WEBP", lossless=True),
        "webp-alpha.webp": encoded(alpha, "WEBP"),
        "webp-animated.webp": encoded(photo(), "WEBP", save_all=True, append_images=two),
        "webp-named.jpg": encoded(photo(), "WEBP"),
        "gif.jpg": encoded(palette, "GIF"),
        "gif-transparent.jpg": encoded(palette, "GIF", transparency=3),
        "gif-animated.png": encoded(palette, "GIF", save_all=True, append_images=two),
        "bmp.bmp": encoded(photo(), "BMP"),
        "bmp-grey.bmp": encoded(photo().convert("L"), "BMP"),
        "bmp-palette.bmp": encoded(palette, "BMP"),
        "bmp-one-bit.bmp": encoded(bits, "BMP"),
        "bmp-32-bits.bmp": encoded(photo().convert("RGBA"), "BMP"),
        "bmp-named.jpg": encoded(photo(), "BMP"),
        "ppm.ppm": encoded(photo(), "PPM"),
        "ppm-bytes-behind.ppm": encoded(photo(), "PPM") + b"\n\n",
        "ppm-comment.ppm": b"P6\n# made by hand\n2 1\n255\n" + bytes(range(0, 60, 10)),
        "ppm-text.ppm": b"P3 2 1 255\n1 2 3 40 50 60\n",
        "pgm.pgm": encoded(photo().convert("L"), "PPM"),
        "pgm-text.pgm": b"P2 3 1 255\n1 20 255\n",
        "pbm.pgm": encoded(bits, "PPM"),
        "jpeg-2000.jpg": encoded(photo(), "JPEG2000"),
    }
    found: Good = {name: (content, 1) for name, content in upright.items()}
    for turn in (4, 6):
        found[f"webp-exif-{turn}.webp"] = (encoded(photo(), "WEBP", exif=exif(turn)), turn)
    return found


def _png(**options: Any) -> bytes:
    return encoded(photo(), "PNG", **options)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _with(png: bytes, *parts: bytes, before: bytes = b"IDAT") -> bytes:
    """A PNG with further chunks: types and contents in turn."""
    place = png.index(before) - 4
    chunks = b"".join(_chunk(kind, content) for kind, content in zip(parts[::2], parts[1::2], strict=True))
    return png[:place] + chunks + png[place:]


def _png_file(
    width: int, height: int, depth: int, colour: int, data: bytes, interlaced: bool = False, chunk: int = 1 << 20
) -> bytes:
    """A PNG of compressed rows. `colour`: 0 for grey, 2 for RGB."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = b"".join(_chunk(b"IDAT", data[start : start + chunk]) for start in range(0, len(data), chunk))
    return _PNG + _chunk(b"IHDR", header) + parts + _chunk(b"IEND", b"")


def _rows(pixels: NDArray[Any]) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))


def _interlaced(pixels: NDArray[np.uint8]) -> bytes:
    passes = [pixels[top::down, left::right] for top, left, down, right in _ADAM7]
    rows = b"".join(b"\0" + row.tobytes() for image in passes for row in image)
    return _png_file(WIDTH, HEIGHT, 8, 2, zlib.compress(rows), interlaced=True)


def _grey_png(bits: int) -> bytes:
    levels = np.array(photo().convert("L")) >> (8 - bits)
    spread = (levels[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1  # each level as its bits
    return _png_file(WIDTH, HEIGHT, bits, 0, _rows(np.packbits(spread.reshape(HEIGHT, -1), axis=1)))


def _tiff(pixels: NDArray[np.uint16]) -> bytes:
    """An uncompressed TIFF of 16 bits a channel, which Pillow does not write."""
    height, width, _ = pixels.shape
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, pixels.nbytes)]
    data = struct.pack("<3H", 16, 16, 16) + pixels.astype("<u2").tobytes()
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + table
