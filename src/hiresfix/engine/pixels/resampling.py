"""Change sizes, follow the input (back-projection) and sharpen: everything around a network.

Guarantees: every operation is local (the reach of each is stated, so that tiles can carry a halo for it), moves
nothing by a fraction of a pixel and renormalises its kernel at the border of the image. Tensors are float32
(1, 3, height, width) with a nominal range of 0..1. Knows no networks and no tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiresfix.engine import devices
from hiresfix.engine.pixels import arrays, tiling
from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.pixels.tiling import Span

REACH = 16
"""Input pixels around a pixel that matter to it: beyond, a reduction, nine rounds of `back_project` and `sharpen` see
nothing that would show."""


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resize by bicubic interpolation (a = -0.5), antialiased when it shrinks.

    Reach: two source pixels when it upscales, two result pixels when it shrinks.
    """
    if x.shape[-2:] == (height, width):
        return x
    return functional.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False)


def resize_lanczos(x: Tensor, height: int, width: int) -> Tensor:
    """Reduce to a half, a quarter, a sixth ... by Lanczos (a = 3) as Pillow does it; other sizes by `resize`.

    Reach: three result pixels. Values that the kernel drives beyond 0..1 are clipped after each axis, as in Pillow's
    8 bits.
    """
    ratio = x.shape[3] // width
    if ratio % 2 or x.shape[2:] != (height * ratio, width * ratio):
        return resize(x, height, width)
    places = (torch.arange(6 * ratio, dtype=torch.float64) + 0.5) / ratio - 3
    taps = (torch.sinc(places) * torch.sinc(places / 3)).to(x)
    for _ in range(2):  # horizontally, then, transposed, vertically
        sums, weights = (_reduce_columns(part, taps, ratio) for part in (x, torch.ones_like(x[:1, :1, :1])))
        x = (sums / weights).clamp(0, 1).transpose(2, 3)
    return x.contiguous()


def _reduce_columns(x: Tensor, taps: Tensor, ratio: int) -> Tensor:
    """Convolve each row at the middle of every `ratio` pixels, with zeros beyond its ends."""
    kernel, channels = taps.expand(x.shape[1], 1, 1, -1), x.shape[1]
    return functional.conv2d(x, kernel, stride=(1, ratio), padding=(0, 5 * ratio // 2), groups=channels)


def back_projection_weights(resemblance: float) -> list[float]:
    """Return the weight of each round of `back_project` for a resemblance of 0..3.

    0 gives no rounds; up to 1 three rounds of that weight (0.6 is the published choice); beyond 1 full rounds, nine
    at 3, where more rounds change nothing. More resemblance never means less correction.
    """
    if resemblance <= 1:
        return [resemblance] * 3 if resemblance > 0 else []
    whole, part = divmod(3 * resemblance, 1)
    return [1.0] * int(whole) + [part] * (part > 0)


def back_project(y: Tensor, x: Tensor, weights: Sequence[float]) -> Tensor:
    """Pull `y`, scaled down, towards the input `x`, and leave the detail beyond `x` alone.

    y <- y + w * up(x - down(y)) for each weight w, clipped to 0..1 (Irani and Peleg, Improving Resolution by Image
    Registration, 1991). At equal sizes this would undo the network, so only what survives half the size is corrected.
    Reach: four input pixels a round, with far less weight on the distant ones.
    """
    height, width = x.shape[-2:]
    for weight in weights:
        residual = x - resize(y, height, width) if y.shape != x.shape else _coarse(x - y)
        y = (y + weight * resize(residual, *y.shape[-2:])).clamp(0, 1)
    return y


def amplify_detail(y: Tensor, x: Tensor, gain: float) -> Tensor:
    """Multiply what `y` has beyond the interpolated input: up(x) + gain * (y - up(x)); 1 changes nothing."""
    if gain == 1:
        return y
    up = resize(x, *y.shape[-2:])
    return up + gain * (y - up)


def _coarse(x: Tensor) -> Tensor:
    return low_pass(functional.pad(x, (4, 4, 4, 4), mode="replicate"))


def low_pass(x: Tensor) -> Tensor:
    """Low-pass at half the Nyquist frequency with the separable binomial kernel of nine taps.

    The result lacks the four pixels at each side that would see beyond the border.
    """
    taps = devices.copy_to_device(torch.tensor([1, 8, 28, 56, 70, 56, 28, 8, 1], dtype=x.dtype) / 256, x.device)
    channels = x.shape[1]
    x = functional.conv2d(x, taps.view(1, 1, 1, 9).expand(channels, -1, -1, -1), groups=channels)
    return functional.conv2d(x, taps.view(1, 1, 9, 1).expand(channels, -1, -1, -1), groups=channels)


def luminance(x: Tensor) -> Tensor:
    """Return the luminance (n, 1, h, w) of (n, 3, h, w)."""
    red, green, blue = x.split(1, 1)  # type: ignore[no-untyped-call]  # upstream
    return arrays.luminance(red, green, blue)  # type: ignore[no-any-return]  # a Tensor


def sharpen(y: Tensor, strength: float) -> Tensor:
    """Sharpen the luminance with a 3x3 kernel; strength 0..10. Reach: 1 pixel.

    The kernel is the usual one (eight neighbours -strength/10), but a pixel stays within the range of luminance that
    its neighbourhood had: edges get steeper, and no halo appears beside them.
    """
    if strength == 0:
        return y
    luma = luminance(y)
    padded = functional.pad(luma, (1, 1, 1, 1), mode="replicate")
    neighbours = 9 * functional.avg_pool2d(padded, 3, 1) - luma
    sharper = luma + strength / 10 * (8 * luma - neighbours)
    highest = functional.max_pool2d(padded, 3, 1)
    lowest = -functional.max_pool2d(-padded, 3, 1)
    return y + (sharper.clamp(lowest, highest) - luma)


def sharpen_channels(y: Tensor, strength: float) -> Tensor:
    """Sharpen each channel with the same kernel as the original does: with halos, and without the border pixels."""
    kernel = y.new_full((3, 3), -strength / 10)
    kernel[1, 1] = 1 + 0.8 * strength
    sharper = y.clone()
    if min(y.shape[-2:]) > 2:
        inner = functional.conv2d(y, kernel.expand(3, 1, 3, 3), groups=3)
        sharper[..., 1:-1, 1:-1] = inner.clamp(0, 1)
    return sharper


def mirrored_indices(length: int, count: int) -> Tensor:
    """Return `tiling.mirrored_indices` of the first `count` pixels as a tensor on the CPU."""
    return torch.from_numpy(tiling.mirrored_indices(Span(start=0, end=count), length))


def to_tensor(rgb: ImageArray, device: torch.device) -> Tensor:
    """Convert (H, W, 3) uint8, uint16 or float to (1, 3, H, W) float32 in 0..1."""
    # 8-bit samples are sent as they are, a quarter of the bytes, and converted on the device.
    values = devices.copy_to_device(
        torch.from_numpy(rgb.copy() if rgb.dtype == np.uint8 else rgb.astype(np.float32)), device
    )
    x = torch.empty((1, 3, *rgb.shape[:2]), device=device).copy_(values.permute(2, 0, 1)[None])
    return x.div_(_max_value(rgb.dtype))


def to_samples(y: Tensor, dtype: np.dtype[Any]) -> ImageArray:
    """Convert back from `to_tensor`: clip to 0..1 and round to the nearest sample."""
    values = y[0].clamp(0, 1).mul_(_max_value(dtype))
    return to_host(values if dtype.kind == "f" else values.round_(), dtype)


def to_host(values: Tensor, dtype: np.dtype[Any]) -> ImageArray:
    """Copy (3, H, W) in the range of `dtype` from the device to (H, W, 3) of that dtype."""
    if dtype == np.uint8:
        values = values.to(torch.uint8)  # on the device: a quarter of the bytes to copy
    return values.permute(1, 2, 0).contiguous().cpu().numpy().astype(dtype, copy=False)


def _max_value(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def scale_between(result: ImageArray, source: ImageArray) -> int:
    """Return the whole scale between (H * scale, W * scale, 3) and (H, W, 3); ValueError if there is none."""
    scale = int(result.shape[0]) // int(source.shape[0])
    if scale < 1 or result.shape[:2] != (source.shape[0] * scale, source.shape[1] * scale):
        raise ValueError(
            f"{result.shape[1]}x{result.shape[0]} is not a whole multiple of {source.shape[1]}x{source.shape[0]}"
        )
    return scale
