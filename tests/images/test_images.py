"""Decoding and encoding, with real files of every format."""

from __future__ import annotations

import io
import tracemalloc
import warnings
import zlib

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from hiresfix import images
from hiresfix.errors import ImageError
from hiresfix.images import DecodedImage, ImageLimits, PixelArray, bleed, decode, encode, read_header, upscale_alpha
from hiresfix.images.ifd import ByteOrder
from hiresfix.recipe import OutputFormat
from tests import sample_images

LIMITS = ImageLimits()
FORMATS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}


def distance(one: PixelArray, other: PixelArray) -> int:
    return int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())


def reopened(encoded: images.EncodedImage) -> Image.Image:
    image = Image.open(io.BytesIO(encoded.data))
    image.load()
    return image


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forged", [sample_images.forged_png, sample_images.forged_gif, sample_images.forged_webp])
def test_forged_huge_size_is_rejected_without_allocation(forged: sample_images.Forger) -> None:
    data = forged()
    resident = psutil.Process().memory_info().rss
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"50000x50000, 2500 MP; the limit is 64 MP. Make it smaller first"):
            read_header(data, LIMITS)
        with pytest.raises(ImageError, match="the limit is 64 MP"):
            decode(data, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert psutil.Process().memory_info().rss - resident < 20_000_000


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_reading_a_header_allocates_no_pixels(file_format: str) -> None:
    data = sample_images.save(np.zeros((2000, 2000, 3), np.uint8), file_format)
    tracemalloc.start()
    try:
        assert read_header(data, LIMITS).size == (2000, 2000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_too_many_bytes_names_the_limit() -> None:
    data = sample_images.png()
    data += bytes(1024 * 1024 - len(data))
    assert read_header(data, ImageLimits(max_bytes=1024 * 1024)).size == (64, 48)
    with pytest.raises(ImageError, match=r"larger than the limit of 1 MiB. Compress it more"):
        read_header(data + b"\0", ImageLimits(max_bytes=1024 * 1024))


def test_input_limit_is_inclusive() -> None:
    data = sample_images.save(np.zeros((100, 100), np.uint8), "PNG")
    read_header(data, ImageLimits(max_input_megapixels=0.01))
    with pytest.raises(ImageError, match="100x100"):
        read_header(data, ImageLimits(max_input_megapixels=0.009999))


def test_limit_cannot_exceed_pillows_bomb_guard() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ValueError, match="decompression-bomb guard"):
        ImageLimits(max_input_megapixels=90)


@pytest.mark.parametrize(
    ("scale", "size", "message"),
    [
        (8, (4000, 3000), "8x of 4000x3000 is 768 MP; the limit is 64 MP. Use 2."),
        (8, (1500, 1500), "8x of 1500x1500 is 144 MP; the limit is 64 MP. Use 4."),
        (2, (8000, 7000), "2x of 8000x7000 is 224 MP; the limit is 64 MP. Use 1."),
        (1, (9000, 8000), "1x of 9000x8000 is 72 MP; the limit is 64 MP. Make the image smaller first."),
    ],
)
def test_output_over_limit_names_largest_fitting_scale(scale: int, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ImageError) as caught:
        images.check_output(size, scale, LIMITS)
    assert caught.value.message == message


def test_output_limit_is_inclusive() -> None:
    images.check_output((4000, 4000), 2, LIMITS)
    header = images.ImageHeader(media_type="image/png", width=1000, height=1000)
    images.check_output(header, 8, LIMITS)


@pytest.mark.parametrize(("output_format", "largest"), [(OutputFormat.WEBP, 16_383), (OutputFormat.JPG, 65_500)])
def test_too_long_sides_fail_check_and_encoding(output_format: OutputFormat, largest: int) -> None:
    images.check_format(largest, 1, output_format)
    strip = DecodedImage(rgb=np.zeros((1, largest, 3), np.uint8))
    assert reopened(encode(strip, output_format)).size == (largest, 1)
    with pytest.raises(ImageError, match="Use png"):
        images.check_format(1, largest + 1, output_format)
    with pytest.raises(ImageError, match=str(largest)):
        encode(DecodedImage(rgb=np.zeros((largest + 1, 1, 3), np.uint8)), output_format)
    images.check_format(1, largest + 1, OutputFormat.PNG)


# --- formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (64, 48)])
def test_every_format_keeps_size_and_colours(file_format: str, size: tuple[int, int]) -> None:
    pixels = sample_images.smooth(*size)
    data = sample_images.save(pixels, file_format, **({"quality": 95} if file_format != "BMP" else {}))
    header = read_header(data, LIMITS)
    assert (header.media_type, header.size) == (FORMATS[file_format], size)
    decoded = decode(data, LIMITS)
    assert decoded.rgb.shape == pixels.shape
    assert decoded.rgb.dtype == np.uint8
    tolerance = {"PNG": 0, "TIFF": 0, "BMP": 0, "GIF": 32}.get(file_format, 16)
    assert distance(decoded.rgb, pixels) <= tolerance
    assert (decoded.alpha, decoded.grey) == (None, False)


@pytest.mark.parametrize("file_format", ["PSD", "EPS", "TGA", "PPM", "ICO", "JPEG2000", "PDF", "DDS"])
def test_other_pillow_formats_are_rejected(file_format: str) -> None:
    data = (
        b"8BPS\0\1" + b"\0" * 60
        if file_format == "PSD"
        else sample_images.save(sample_images.photo(16, 16), file_format)
    )
    with pytest.raises(ImageError, match="Send PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF or HEIC"):
        read_header(data, LIMITS)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"II*\0", b"BM"]
)
def test_non_images_are_rejected(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"Send PNG|again"):
        read_header(data, LIMITS)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"])
def test_truncated_file_is_rejected(file_format: str) -> None:
    data = sample_images.save(sample_images.photo(200, 150), file_format)
    with pytest.raises(ImageError, match="again"):
        decode(data[: len(data) // 2], LIMITS)


def test_12_bit_jpeg_is_rejected() -> None:
    data = bytearray(sample_images.jpeg())
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageError, match="JPEG with 12 bits per sample is not supported"):
        read_header(bytes(data), LIMITS)


def test_missing_heic_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sample_images.save(sample_images.smooth(32, 32), "HEIF")
    monkeypatch.setattr("hiresfix.images.containers.heif.pillow_heif", None)
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        read_header(data, LIMITS)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_is_used_and_noted(file_format: str) -> None:
    first, second = sample_images.smooth(24, 16), sample_images.photo(24, 16)
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = sample_images.save(first, file_format, save_all=True, append_images=[Image.fromarray(second)], **options)
    assert read_header(data, LIMITS).several
    decoded = decode(data, LIMITS)
    assert "Only the first frame or page was used." in decoded.notes
    assert distance(decoded.rgb, first) <= (32 if file_format == "GIF" else 0)


# --- orientation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_becomes_upright(file_format: str, orientation: int) -> None:
    if file_format == "TIFF":
        stored = Image.open(io.BytesIO(sample_images.rotated(orientation, "PNG")))
        data = sample_images.save(stored, "TIFF", exif=b"", tiffinfo={274: orientation})
    else:
        data = sample_images.rotated(orientation, file_format)
    assert read_header(data, LIMITS).size == (40, 24)
    decoded = decode(data, LIMITS)
    assert distance(decoded.rgb, sample_images.smooth(40, 24)) <= {"JPEG": 6, "WEBP": 24}.get(file_format, 0)
    assert Image.open(io.BytesIO(encode(decoded, OutputFormat.JPG).data)).getexif().get(274, 1) == 1


# --- colour -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile", [sample_images.DISPLAY_P3, sample_images.ADOBE_RGB], ids=["Display P3", "Adobe RGB"]
)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_wide_gamut_pixels_and_profile_survive(file_format: str, profile: bytes) -> None:
    pixels = sample_images.smooth(40, 24)
    data = sample_images.save(pixels, file_format, icc_profile=profile)
    plain = decode(sample_images.save(pixels, file_format), LIMITS)
    decoded = decode(data, LIMITS)
    assert decoded.icc == profile
    assert distance(decoded.rgb, plain.rgb) == 0
    for output_format in OutputFormat:
        assert reopened(encode(decoded, output_format)).info["icc_profile"] == profile


def test_unusable_profile_is_dropped_with_note() -> None:
    for profile in (b"no profile at all" * 20, sample_images.odd_cmyk_profile(), sample_images.GREY_GAMMA_18):
        decoded = decode(sample_images.save(sample_images.smooth(8, 8), "PNG", icc_profile=profile), LIMITS)
        assert decoded.icc is None
        assert any("colour profile" in note for note in decoded.notes)


def test_profile_over_4_mib_is_dropped_with_note() -> None:
    data = sample_images.png()
    huge = sample_images.chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(5 * 1024 * 1024)))
    decoded = decode(data[:33] + huge + data[33:], LIMITS)
    assert decoded.icc is None
    assert any("too large" in note for note in decoded.notes)


def test_grey_stays_one_channel_and_keeps_its_profile() -> None:
    data = sample_images.save(sample_images.smooth(40, 24)[..., 0], "PNG", icc_profile=sample_images.GREY_GAMMA_18)
    decoded = decode(data, LIMITS)
    assert decoded.grey
    assert decoded.icc == sample_images.GREY_GAMMA_18
    for output_format in (OutputFormat.PNG, OutputFormat.JPG):
        result = reopened(encode(decoded, output_format))
        assert result.mode == "L"
        assert result.info["icc_profile"] == sample_images.GREY_GAMMA_18


def test_grey_with_a_profile_becomes_srgb_in_webp() -> None:
    # Encoded 128 at gamma 1.8 is linear 0.289, which sRGB encodes as 147.
    decoded = DecodedImage(rgb=np.full((16, 16, 3), 128, np.uint8), grey=True, icc=sample_images.GREY_GAMMA_18)
    encoded = encode(decoded, OutputFormat.WEBP)
    result = reopened(encoded)
    assert "icc_profile" not in result.info
    assert abs(int(np.asarray(result)[8, 8, 1]) - 147) <= 2
    assert any("sRGB" in note for note in encoded.notes)


def test_grey_with_rgb_profile_counts_as_colour() -> None:
    data = sample_images.save(sample_images.smooth(8, 8)[..., 0], "JPEG", icc_profile=sample_images.ADOBE_RGB)
    decoded = decode(data, LIMITS)
    assert (decoded.grey, decoded.icc) == (False, sample_images.ADOBE_RGB)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_with_its_profile(file_format: str) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    decoded = decode(sample_images.save(cyan, file_format, icc_profile=sample_images.odd_cmyk_profile()), LIMITS)
    red, green, blue = (int(value) for value in decoded.rgb[8, 8])
    assert red > 230  # this profile prints red for the cyan ink
    assert max(green, blue) < 60
    assert decoded.icc is None
    assert "CMYK was converted to sRGB." in decoded.notes


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_without_profile_has_right_polarity(file_format: str) -> None:
    inks = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
    inks.paste((0, 255, 255, 0), (16, 0, 32, 16))
    decoded = decode(
        sample_images.save(inks, file_format, **({"quality": 100} if file_format == "JPEG" else {})), LIMITS
    )
    assert distance(decoded.rgb[8, 4], np.array([255, 255, 255], np.uint8)) <= 3
    assert distance(decoded.rgb[8, 28], np.array([255, 0, 0], np.uint8)) <= 3
    assert any("plain formula" in note for note in decoded.notes)


def test_lab_is_converted_to_srgb() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    pixels = sample_images.smooth(32, 16)
    image = ImageCms.profileToProfile(Image.fromarray(pixels), srgb, lab, outputMode="LAB")
    assert image is not None
    decoded = decode(sample_images.save(image, "TIFF"), LIMITS)
    assert np.abs(decoded.rgb.astype(int) - pixels).mean() < 1  # 8 bit L*a*b* is coarse in saturated shadows


@pytest.mark.parametrize(
    ("mode", "grey"), [("1", True), ("L", True), ("LA", True), ("P", False), ("YCbCr", False), ("I;16", True)]
)
def test_tiff_sample_kinds_match_pillow(mode: str, grey: bool) -> None:
    image = Image.fromarray(sample_images.smooth(33, 21)).convert("L" if mode == "I;16" else "RGB")
    image = image.convert(mode)
    decoded = decode(sample_images.save(image, "TIFF", compression="tiff_lzw"), LIMITS)
    assert decoded.grey is grey
    if mode == "I;16":
        assert distance(decoded.rgb[..., 0], np.asarray(image)) == 0
    else:
        assert distance(decoded.rgb, np.asarray(image.convert("RGB"))) <= (3 if mode == "YCbCr" else 0)


def test_float_samples_become_16_bit_with_note() -> None:
    ramp = np.linspace(-0.5, 1.5, 64, dtype=np.float32)[None, :].repeat(4, axis=0)
    ramp[0, 0] = np.nan
    decoded = decode(sample_images.save(Image.fromarray(ramp), "TIFF"), LIMITS)
    assert distance(decoded.rgb[1, :, 0], np.rint(np.clip(ramp[1], 0, 1) * 65535).astype(np.uint16)) == 0
    assert any("clipped" in note for note in decoded.notes)


def test_32_bit_integers_must_fit_16_bit() -> None:
    fitting = np.arange(0, 65536, 1024, dtype=np.int32).reshape(8, 8)
    decoded = decode(sample_images.save(Image.fromarray(fitting), "TIFF"), LIMITS)
    assert distance(decoded.rgb[..., 0], fitting.astype(np.uint16)) == 0
    with pytest.raises(ImageError, match="Save it as 8 or 16 bit"):
        decode(sample_images.save(Image.fromarray(fitting + 1024), "TIFF"), LIMITS)


# --- 16 bit -----------------------------------------------------------------------------------------------------


def ramp(*channel_offsets: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Return (64, 128, channels) with 8192 distinct levels in each channel."""
    levels = (np.arange(64 * 128, dtype=np.uint32) * 8).reshape(64, 128, 1)
    return ((levels + np.array(channel_offsets, np.uint32)) % 65536).astype(np.uint16)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_png_keeps_every_16_bit_level(grey: bool, with_alpha: bool) -> None:
    rgb = ramp(0, 0, 0) if grey else ramp(0, 1, 2)
    decoded = DecodedImage(rgb=rgb, alpha=ramp(3)[..., 0] if with_alpha else None, grey=grey)
    back = decode(encode(decoded, OutputFormat.PNG).data, LIMITS)
    assert back.rgb.dtype == np.uint16
    assert len(np.unique(back.rgb[..., 1])) == 8192
    assert distance(back.rgb, rgb) == 0
    assert back.grey is grey
    if decoded.alpha is not None:
        assert back.alpha is not None
        assert distance(back.alpha, decoded.alpha) == 0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extra", [None, 2])
def test_tiff_keeps_every_16_bit_level(order: ByteOrder, extra: int | None) -> None:
    samples = ramp(0, 1, 2) if extra is None else ramp(0, 1, 2, 5)
    decoded = decode(sample_images.deep_tiff(samples, order=order, extra=extra), LIMITS)
    assert distance(decoded.rgb, samples[..., :3]) == 0
    if extra:
        assert decoded.alpha is not None
        assert distance(decoded.alpha, samples[..., 3]) == 0


def test_premultiplied_16_bit_colours_are_divided_by_alpha() -> None:
    alpha = np.full((4, 4, 1), 32768, np.uint16)
    samples = np.dstack([np.full((4, 4, 3), 16384, np.uint16), alpha])
    decoded = decode(sample_images.deep_tiff(samples, extra=1), LIMITS)
    assert distance(decoded.rgb, np.full((4, 4, 3), 32767, np.uint16)) <= 1


def test_interlaced_16_bit_png_is_read() -> None:
    # At 1x1 an Adam7 stream differs from a plain one only in the flag.
    flat = encode(DecodedImage(rgb=np.array([[[258, 772, 1286]]], np.uint16)), OutputFormat.PNG).data
    header = bytearray(flat[16:29])
    header[12] = 1
    decoded = decode(flat[:8] + sample_images.chunk(b"IHDR", bytes(header)) + flat[33:], LIMITS)
    assert decoded.rgb.tolist() == [[[258, 772, 1286]]]


@pytest.mark.parametrize("output_format", [OutputFormat.JPG, OutputFormat.WEBP])
def test_16_bit_is_rounded_to_nearest_8_bit(output_format: OutputFormat) -> None:
    for level, nearest in ((255 * 257 - 128, 255), (255 * 257 - 129, 254), (128, 0), (129, 1)):
        encoded = encode(DecodedImage(rgb=np.full((16, 16, 3), level, np.uint16)), output_format)
        assert abs(int(np.asarray(reopened(encoded))[8, 8, 0]) - nearest) <= (output_format == OutputFormat.WEBP)
        assert any("16 bit was rounded" in note for note in encoded.notes)


def test_10_bit_heic_spans_full_16_bits() -> None:
    import pillow_heif

    samples = np.array([[0, 1023 << 6]], np.uint16).repeat(32, axis=0).repeat(16, axis=1)[..., None].repeat(3, axis=2)
    heif = pillow_heif.from_bytes(mode="RGB;16", size=(32, 32), data=samples.tobytes())
    out = io.BytesIO()
    heif.save(out, quality=-1)
    decoded = decode(out.getvalue(), LIMITS)
    assert decoded.rgb.dtype == np.uint16
    assert int(decoded.rgb.max()) > 65_000
    assert int(decoded.rgb.min()) < 500


# --- transparency -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", [OutputFormat.PNG, OutputFormat.WEBP])
def test_transparency_keeps_hidden_colours(output_format: OutputFormat) -> None:
    source = sample_images.cut_out()
    decoded = decode(sample_images.save(source, "PNG"), LIMITS)
    assert decoded.alpha is not None
    back = decode(encode(decoded, output_format).data, LIMITS)
    assert back.alpha is not None
    assert distance(back.alpha, source[..., 3]) == 0
    hidden = back.rgb[:4, :4].reshape(-1, 3)
    assert (hidden[:, 1] > 230).all()
    assert (hidden[:, 0] < 30).all()


def test_jpeg_places_transparency_over_white_with_note() -> None:
    encoded = encode(decode(sample_images.save(sample_images.cut_out(), "PNG"), LIMITS), OutputFormat.JPG)
    pixels = np.asarray(reopened(encoded))
    assert pixels[:4, :4].min() > 250
    assert any("over white" in note for note in encoded.notes)


def test_opaque_alpha_channel_is_dropped() -> None:
    opaque = np.dstack([sample_images.smooth(8, 8), np.full((8, 8), 255, np.uint8)])
    assert decode(sample_images.save(opaque, "PNG"), LIMITS).alpha is None


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_transparent_palette_entry_becomes_alpha(file_format: str) -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(1, (2, 0, 4, 2))
    decoded = decode(sample_images.save(image, file_format, transparency=0), LIMITS)
    assert decoded.alpha is not None
    assert decoded.alpha.tolist() == [[0, 0, 255, 255]] * 2
    assert decoded.rgb[0, 3].tolist() == [200, 10, 10]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_png_transparent_colour_becomes_alpha(mode: str) -> None:
    image = Image.new(mode, (4, 2), 7 if mode == "L" else (7, 8, 9))
    image.paste(200 if mode == "L" else (200, 8, 9), (2, 0, 4, 2))
    decoded = decode(sample_images.save(image, "PNG", transparency=7 if mode == "L" else (7, 8, 9)), LIMITS)
    assert decoded.alpha is not None
    assert decoded.alpha.tolist() == [[0, 0, 255, 255]] * 2
    assert decoded.grey is (mode == "L")


def test_png_transparent_colour_compares_16_bits() -> None:
    rgb = np.array([[[1000, 2000, 3000], [1001, 2000, 3000]]], np.uint16)
    data = encode(DecodedImage(rgb=rgb), OutputFormat.PNG).data
    trns = sample_images.chunk(b"tRNS", np.array([1000, 2000, 3000], ">u2").tobytes())
    decoded = decode(data[:33] + trns + data[33:], LIMITS)
    assert decoded.alpha is not None
    assert decoded.alpha.tolist() == [[0, 65535]]


@pytest.mark.parametrize("backdrop", [0, 255])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_upscaled_cut_out_has_no_halo(backdrop: int, factor: int, soft: bool) -> None:
    """The subject has one colour, so every pixel of the result must be a mix of that colour and the backdrop."""
    source = sample_images.cut_out(soft=soft)
    alpha, size = source[..., 3], (64 * factor, 48 * factor)
    spread = bleed(source[..., :3], alpha)
    colour = np.asarray(Image.fromarray(spread).resize(size, Image.Resampling.LANCZOS), np.float64)
    cover = upscale_alpha(alpha, *size)[..., None] / 255
    shown = colour * cover + backdrop * (1 - cover)
    expected = np.array([230, 120, 20]) * cover + backdrop * (1 - cover)
    assert np.abs(shown - expected).max() <= 1.0
    naive = np.asarray(Image.fromarray(source[..., :3]).resize(size, Image.Resampling.LANCZOS), np.float64)
    halo = np.abs(naive * cover + backdrop * (1 - cover) - expected).max()
    assert halo > (3 if soft else 50), "without bleeding the hidden green must be visible, or this test proves nothing"


@pytest.mark.parametrize("sixteen_bit", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (7, 5), (33, 1300)])
def test_bleed_changes_only_fully_transparent_pixels(sixteen_bit: bool, size: tuple[int, int]) -> None:
    random = np.random.default_rng(3)
    samples: PixelArray = random.integers(0, 255, (size[1], size[0], 4), dtype=np.uint8, endpoint=True)
    if sixteen_bit:
        samples = random.integers(0, 65535, samples.shape, dtype=np.uint16, endpoint=True)
    rgb, alpha = samples[..., :3].copy(), samples[..., 3].copy()
    alpha[random.random(alpha.shape) < 0.7] = 0
    before, after = rgb.copy(), bleed(rgb, alpha)
    assert (rgb == before).all()
    assert (after[alpha > 0] == before[alpha > 0]).all()
    if (alpha > 0).any():
        visible = before[alpha > 0]
        assert (after[alpha == 0] >= visible.min(axis=0)).all()
        assert (after[alpha == 0] <= visible.max(axis=0)).all()


def test_bleed_has_no_seam_between_bands() -> None:
    rgb = np.zeros((1200, 8, 3), np.uint8)
    rgb[0], rgb[-1] = 0, 240
    alpha = np.zeros((1200, 8), np.uint8)
    alpha[0] = alpha[-1] = 255
    steps = np.abs(np.diff(bleed(rgb, alpha).astype(int), axis=0))[1:-1]
    assert steps.max() <= 2


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_upscaled_mask_neither_rings_nor_shifts(factor: int) -> None:
    mask = np.full((16, 16), 40, np.uint8)
    mask[4:12, 4:12] = 200
    large = upscale_alpha(mask, 16 * factor, 16 * factor)
    assert (large.min(), large.max()) == (40, 200)
    assert (large == large[::-1]).all()
    assert (large == large[:, ::-1]).all()
    middle = large[8 * factor].astype(int)
    assert middle[4 * factor - 1] < 120 <= middle[4 * factor]  # the edge stays between the same two pixels
    assert (np.diff(middle[: 8 * factor]) >= 0).all()


def test_16_bit_mask_is_upscaled_at_16_bit() -> None:
    mask = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    assert len(np.unique(upscale_alpha(mask, 128, 128))) > 4096


# --- metadata ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("output_format", OutputFormat)
def test_exif_survives_cleaned_and_resized(output_format: OutputFormat, order: ByteOrder) -> None:
    block = sample_images.exif(orientation=6, order=order)
    data = sample_images.save(sample_images.smooth(24, 40), "JPEG", exif=b"Exif\0\0" + block)
    decoded = decode(data, LIMITS)
    upscaled = DecodedImage(rgb=decoded.rgb.repeat(2, 0).repeat(2, 1), exif=decoded.exif)
    encoded = encode(upscaled, output_format)
    exif = reopened(encoded).getexif()
    detail = exif.get_ifd(0x8769)
    assert (exif[0x010F], exif[0x0110], exif[0x0132]) == ("Acme", "Camera One", "2026:01:02 03:04:05")
    assert float(detail[0x829A]) == pytest.approx(1 / 250)
    assert exif[274] == 1
    assert (detail[0xA002], detail[0xA003]) == (80, 48)
    assert 0x8825 not in exif
    assert 0x927C not in detail
    for secret in (b"THUMBNAIL", b"SECRET", sample_images.exif(order=order)[-60:-9]):
        assert secret not in encoded.data


@pytest.mark.parametrize("output_format", OutputFormat)
def test_xmp_survives_without_position_and_orientation(output_format: OutputFormat) -> None:
    decoded = decode(sample_images.save(sample_images.smooth(24, 16), "JPEG", xmp=sample_images.XMP), LIMITS)
    xmp = decode(encode(decoded, output_format).data, LIMITS).xmp
    assert xmp is not None
    assert b"<rdf:li>Ada</rdf:li>" in xmp
    assert b'xmp:Rating="5"' in xmp
    for gone in (b"GPS", b"Gps", b"139.7", b"35,41", b"40/1", b"x>y", b"Orientation"):
        assert gone not in xmp


@pytest.mark.parametrize("output_format", OutputFormat)
def test_stripping_metadata_keeps_the_profile(output_format: OutputFormat) -> None:
    data = sample_images.save(
        sample_images.smooth(24, 16),
        "JPEG",
        exif=b"Exif\0\0" + sample_images.exif(),
        xmp=sample_images.XMP,
        icc_profile=sample_images.DISPLAY_P3,
    )
    encoded = encode(decode(data, LIMITS), output_format, keep_metadata=False)
    result = decode(encoded.data, LIMITS)
    assert (result.exif, result.xmp, result.icc) == (None, None, sample_images.DISPLAY_P3)
    assert b"Acme" not in encoded.data
    assert b"Ada" not in encoded.data


@pytest.mark.parametrize(
    "xmp",
    [
        b'<!DOCTYPE x [<!ENTITY a "GPS">]><x>&a;</x>',
        b"<x:xmpmeta xmlns:x='a'><unclosed>",
        '<x exif:GPSLatitude="1"/>'.encode("utf-16"),
    ],
    ids=["entities", "malformed", "utf-16"],
)
def test_suspicious_xmp_is_dropped_with_note(xmp: bytes) -> None:
    decoded = decode(sample_images.save(sample_images.smooth(8, 8), "JPEG", xmp=xmp), LIMITS)
    assert decoded.xmp is None
    assert any("Metadata" in note for note in decoded.notes)


def test_damaged_exif_does_not_spoil_the_image() -> None:
    good = sample_images.exif()
    for block in (good[:20], b"II*\0\xff\xff\xff\xff", good[:8] + b"\xff" * 40, b"junk"):
        data = sample_images.save(sample_images.smooth(8, 8), "JPEG", exif=b"Exif\0\0" + block)
        assert decode(data, LIMITS).size == (8, 8)


def test_tiff_metadata_follows_the_same_rules() -> None:
    data = sample_images.save(sample_images.smooth(24, 16), "TIFF", tiffinfo={271: "Acme", 315: "Ada"}, dpi=(300, 300))
    decoded = decode(data, LIMITS)
    exif = reopened(encode(decoded, OutputFormat.JPG)).getexif()
    assert (exif[271], exif[315]) == ("Acme", "Ada")
    assert 273 not in exif
    assert decoded.dpi == pytest.approx((300, 300))


@pytest.mark.parametrize("output_format", [OutputFormat.PNG, OutputFormat.JPG])
def test_resolution_survives(output_format: OutputFormat) -> None:
    decoded = decode(sample_images.save(sample_images.smooth(24, 16), "PNG", dpi=(300, 150)), LIMITS)
    assert reopened(encode(decoded, output_format)).info["dpi"] == pytest.approx((300, 150), abs=0.5)


# --- output -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (37, 53)])
@pytest.mark.parametrize("output_format", OutputFormat)
def test_output_has_exactly_the_image_size(output_format: OutputFormat, size: tuple[int, int]) -> None:
    pixels = sample_images.smooth(*size)
    encoded = encode(DecodedImage(rgb=pixels), output_format)
    result = reopened(encoded)
    assert result.size == size == (encoded.width, encoded.height)
    assert Image.MIME[result.format or ""] == encoded.media_type
    assert distance(np.asarray(result.convert("RGB")), pixels) <= {"png": 0, "jpg": 4, "webp": 12}[output_format]


def test_jpeg_is_written_without_chroma_subsampling() -> None:
    encoded = encode(DecodedImage(rgb=sample_images.photo(32, 32)), OutputFormat.JPG)
    assert {(layer[1], layer[2]) for layer in getattr(reopened(encoded), "layer")} == {(1, 1)}  # noqa: B009


# --- hostile bytes ----------------------------------------------------------------------------------------------

_SMALL = ImageLimits(max_bytes=1_000_000, max_input_megapixels=1)


def _valid_files() -> list[bytes]:
    block = b"Exif\0\0" + sample_images.exif(orientation=6)
    pixels = sample_images.photo(24, 17)
    plain = [sample_images.save(pixels, name) for name in FORMATS]
    rich = [
        sample_images.save(pixels, "JPEG", exif=block, xmp=sample_images.XMP, icc_profile=sample_images.DISPLAY_P3),
        sample_images.save(pixels, "PNG", exif=block, icc_profile=sample_images.DISPLAY_P3, dpi=(72, 72)),
        sample_images.save(sample_images.cut_out(16, 16), "WEBP", exif=block, xmp=sample_images.XMP),
        sample_images.save(pixels, "TIFF", compression="tiff_lzw", icc_profile=sample_images.ADOBE_RGB),
        sample_images.save(pixels, "TIFF", compression="jpeg"),
        sample_images.save(
            Image.fromarray(pixels).convert("CMYK"), "JPEG", icc_profile=sample_images.odd_cmyk_profile()
        ),
        sample_images.save(Image.fromarray(pixels).quantize(16), "PNG", transparency=3),
        encode(DecodedImage(rgb=ramp(0, 1, 2)[:9, :9], alpha=ramp(3)[:9, :9, 0]), OutputFormat.PNG).data,
        sample_images.deep_tiff(ramp(0, 1, 2)[:9, :9]),
    ]
    return plain + rich


_VALID = _valid_files()


def _check_image_or_image_error(data: bytes) -> None:
    message, size = "", None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # not "error": a warning turned into an exception would look like an ImageError
        try:
            size = read_header(data, _SMALL).size
            assert decode(data, _SMALL).size == size
        except ImageError as error:
            message = error.message
        if size is None:
            with pytest.raises(ImageError):
                decode(data, _SMALL)
    assert not warned
    assert not message or message.endswith("."), "a sentence that says what to do, not a fragment of a decoder"


@given(st.binary(max_size=400))
def test_random_bytes_give_image_or_image_error(data: bytes) -> None:
    _check_image_or_image_error(data)


@given(st.data())
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_files_give_image_or_image_error(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from(_VALID)))
    # The first bytes declare most of what can go wrong, so half of the damage goes there.
    place = st.one_of(st.integers(0, min(400, len(file) - 1)), st.integers(0, len(file) - 1))
    for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=8)):
        file[at] = value
    cut = data.draw(st.one_of(st.just(len(file)), st.integers(0, len(file))))
    _check_image_or_image_error(bytes(file[:cut]))
