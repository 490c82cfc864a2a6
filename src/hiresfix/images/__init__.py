"""Pictures in and out: bytes to pixels and what travels with them, and back. No torch, no HTTP, no jobs.

    header = read_header(data, limits)               # format and size; no pixel decoded
    check_output(header, scale, limits)              # before anything is promised
    check_format(width, height, output_format)
    picture = decode(data, limits)                   # upright, colours and alpha apart
    encoded = encode(result, output_format)

Guarantees: magic bytes decide, never a name or a declared type. Whatever a stranger sends gives a `Picture` or a
`PictureError` that says what to do. Limits are checked on the header, Pillow's decompression-bomb guard stays on
behind them and truncated files are refused. Calls are plain functions for any thread and change nothing global;
importing the package once makes `PIL.Image.DecompressionBombWarning` an error for the process.

What becomes of each kind of sample:

    source                     Picture                                 profile
    -------------------------  --------------------------------------  ---------------------------------------------
    RGB(A) 8, 16 bit           as it is                                kept, pixels untouched; sRGB assumed without
    grey, grey + alpha, 8, 16  grey, stays one channel in PNG, JPEG    grey profile kept; RGB profile kept, then the
                                                                       picture counts as colour
    1 bit                      grey, 0 and 255                         as grey
    palette                    RGB; with transparency, RGB and alpha   kept
    PNG tRNS of grey or RGB    alpha 0 where the colour matches        kept
    premultiplied alpha        divided by alpha                        kept
    CMYK                       8 bit sRGB, relative colorimetric with  used for the conversion, then gone
                               black point compensation; by the plain
                               formula without profile (both noted)
    YCbCr                      RGB                                     kept
    CIE L*a*b*                 8 bit sRGB (noted)                      dropped
    32 bit integer             16 bit grey if 0..65535, else refused   kept
    float                      16 bit grey, 0..1, clipped (noted)      kept
    HEIC 10, 12 bit            16 bit, rescaled                        kept
    AVIF 10, 12 bit            8 bit (noted): Pillow's decoder         kept
    16 bit in separate planes  refused                                 -

A profile that is damaged, over 4 MiB or made for another colour space is left out and noted. Only the first frame or
page is used (noted). EXIF and XMP are cleaned on the way in: position, thumbnail, maker note, orientation and sizes
in pixels are gone before anything else sees them.
"""

from hiresfix.images.alpha import bleed, enlarge_alpha
from hiresfix.images.reading import decode, read_header
from hiresfix.images.values import (
    MEBIBYTE,
    MEGAPIXEL,
    DecodedImage,
    Encoded,
    Header,
    Limits,
    Samples,
    check_format,
    check_input,
    check_output,
)
from hiresfix.images.writing import encode

__all__ = [
    "MEBIBYTE",
    "MEGAPIXEL",
    "DecodedImage",
    "Encoded",
    "Header",
    "Limits",
    "Samples",
    "bleed",
    "check_format",
    "check_input",
    "check_output",
    "decode",
    "encode",
    "enlarge_alpha",
    "read_header",
]
