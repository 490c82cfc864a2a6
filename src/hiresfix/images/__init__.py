"""Image input and output: bytes to pixels and metadata, and back. No torch, no HTTP, no jobs.

    header = read_header(data, limits)               # format and size; no pixel is decoded
    check_output(header, scale, limits)              # before a job is accepted
    check_format(width, height, output_format)
    image = decode(data, limits)                     # upright, colours and alpha separate
    encoded = encode(result, output_format)

Guarantees: magic bytes decide the format, never a name or a declared type. Untrusted bytes give either a `DecodedImage`
or an `ImageError` that says what to do. Limits are checked on the header, with Pillow's decompression-bomb guard behind
them, and truncated files are rejected. The functions are thread-safe and change nothing global; importing the package
turns `PIL.Image.DecompressionBombWarning` into an error for the whole process.

Conversion of each kind of sample:

    source                     DecodedImage                            profile
    -------------------------  --------------------------------------  ---------------------------------------------
    RGB(A) 8, 16 bit           unchanged                               kept, pixels untouched; sRGB assumed without
    grey, grey + alpha, 8, 16  grey, stays one channel in PNG, JPEG    grey profile kept; with an RGB profile (kept)
                                                                       the image counts as colour
    1 bit                      grey, 0 and 255                         as grey
    palette                    RGB; with transparency, RGB and alpha   kept
    PNG tRNS of grey or RGB    alpha 0 where the colour matches        kept
    premultiplied alpha        divided by alpha                        kept
    CMYK                       8 bit sRGB, relative colorimetric with  used for the conversion, then dropped
                               black point compensation; without a
                               profile by the plain formula (noted)
    YCbCr                      RGB                                     kept
    CIE L*a*b*                 8 bit sRGB (noted)                      dropped
    32 bit integer             16 bit grey if 0..65535, else rejected  kept
    float                      16 bit grey, 0..1, clipped (noted)      kept
    HEIC 10, 12 bit            16 bit, rescaled                        kept
    AVIF 10, 12 bit            8 bit (noted): Pillow's decoder         kept
    16 bit in separate planes  rejected                                -

A profile that is damaged, larger than 4 MiB or made for another colour space is dropped with a note. Only the first
frame or page is used (noted). EXIF and XMP are cleaned while reading: position, thumbnail, maker note, orientation and
sizes in pixels are removed before other code sees them.
"""

from hiresfix.images.alpha import bleed, upscale_alpha
from hiresfix.images.image_types import DecodedImage, EncodedImage, ImageHeader, PixelArray
from hiresfix.images.limits import ImageLimits, check_format, check_input, check_output
from hiresfix.images.reading import decode, read_header
from hiresfix.images.writing import encode

__all__ = [
    "DecodedImage",
    "EncodedImage",
    "ImageHeader",
    "ImageLimits",
    "PixelArray",
    "bleed",
    "check_format",
    "check_input",
    "check_output",
    "decode",
    "encode",
    "read_header",
    "upscale_alpha",
]
