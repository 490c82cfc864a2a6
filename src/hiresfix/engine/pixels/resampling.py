"""What surrounds a network: changing sizes, following the input and sharpening.

Guarantees: every operation is local (the reach of each is stated, so that tiles can carry a halo for it),
moves nothing by a fraction of a pixel and renormalises its kernel at the picture's border. Tensors are float32
(1, 3, height, width), nominal range 0..1. Knows no networks and no tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hiresfix.engine import devices

Samples = NDArray[Any]

REACH = 16
"""Input pixels beyond which a reduction, nine rounds of `follow` and `sharpen` see nothing that would show."""
_LUMA = (0.299, 0.587, 0.114)


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bicubic (a = -0.5), antialiased when shrinking: two source pixels' reach up, two result pixels' reach down."""
    if x.shape[-2:] == (height, width):
        return x
    return functional.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False)


def lanczos(x: Tensor, height: int, width: int) -> Tensor:
    """To a half, a quarter, a sixth ... by Lanczos (a = 3) as Pillow does it: three result pixels' reach.

    Values that the kernel drives beyond 0..1 are cut off after each axis, as in Pillow's 8 bits. Other sizes are left
    to `resize`.
    """
    ratio = x.shape[3] // width
    if ratio % 2 or x.shape[2:] != (height * ratio, width * ratio):
        return resize(x, height, width)
    places = (torch.arange(6 * ratio, dtype=torch.float64) + 0.5) / ratio - 3
    taps = (torch.sinc(places) * torch.sinc(places / 3)).to(x)
    for _ in range(2):  # across, then, turned, down
        sums, weights = (_reduced(part, taps, ratio) for part in (x, torch.ones_like(x[:1, :1, :1])))
        x = (sums / weights).clamp(0, 1).transpose(2, 3)
    return x.contiguous()


def _reduced(x: Tensor, taps: Tensor, ratio: int) -> Tensor:
    """Convolved across, with nothing beyond the ends, in the middle of each `ratio` pixels."""
    kernel, channels = taps.expand(x.shape[1], 1, 1, -1), x.shape[1]
    return functional.conv2d(x, kernel, stride=(1, ratio), padding=(0, 5 * ratio // 2), groups=channels)


def rounds(resemblance: float) -> list[float]:
    """The weights of the rounds of `follow` for a resemblance of 0..3.

    0 gives none; up to 1 three rounds of that weight (0.6 is the published choice); beyond 1 full rounds, nine
    at 3, where nothing more is to be gained. More resemblance never means less correction.
    """
    if resemblance <= 1:
        return [resemblance] * 3 if resemblance > 0 else []
    whole, part = divmod(3 * resemblance, 1)
    return [1.0] * int(whole) + [part] * (part > 0)


def follow(y: Tensor, x: Tensor, weights: Sequence[float]) -> Tensor:
    """Back-projection: pulls `y`, scaled down, towards the input `x` and leaves the detail beyond `x` alone.

    y <- y + w * up(x - down(y)) for each weight w, kept within 0..1 (Irani and Peleg, Improving Resolution by
    Image Registration, 1991). At equal sizes everything `x` holds would undo the network, so only what survives
    half the size is followed. One round looks four input pixels to each side, but far less at what lies far.
    """
    height, width = x.shape[-2:]
    for weight in weights:
        miss = x - resize(y, height, width) if y.shape != x.shape else _coarse(x - y)
        y = (y + weight * resize(miss, *y.shape[-2:])).clamp(0, 1)
    return y


def accent(y: Tensor, x: Tensor, gain: float) -> Tensor:
    """What `y` has beyond the enlarged input `x`, times `gain`: up(x) + gain * (y - up(x)); 1 changes nothing."""
    if gain == 1:
        return y
    up = resize(x, *y.shape[-2:])
    return up + gain * (y - up)


def _coarse(x: Tensor) -> Tensor:
    return smoothed(functional.pad(x, (4, 4, 4, 4), mode="replicate"))


def smoothed(x: Tensor) -> Tensor:
    """Low-pass at half the Nyquist frequency: the binomial kernel of nine taps, separable.

    Without the four pixels at each side that see beyond it.
    """
    taps = devices.send(torch.tensor([1, 8, 28, 56, 70, 56, 28, 8, 1], dtype=x.dtype) / 256, x.device)
    channels = x.shape[1]
    x = functional.conv2d(x, taps.view(1, 1, 1, 9).expand(channels, -1, -1, -1), groups=channels)
    return functional.conv2d(x, taps.view(1, 1, 9, 1).expand(channels, -1, -1, -1), groups=channels)


def luminance(x: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, 1, h, w): the weighted sum of red, green and blue (ITU-R BT.601)."""
    red, green, blue = x.split(1, 1)  # type: ignore[no-untyped-call]  # upstream
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue  # type: ignore[no-any-return]  # a Tensor


def sharpen(y: Tensor, strength: float) -> Tensor:
    """3x3 sharpening of the luminance, 0..10; 1 pixel's reach.

    The kernel is the usual one (eight neighbours -strength/10), but a pixel never leaves the range of
    luminance that its neighbourhood had: edges get steeper, and no halo appears beside them.
    """
    if strength == 0:
        return y
    luma = luminance(y)
    padded = functional.pad(luma, (1, 1, 1, 1), mode="replicate")
    around = 9 * functional.avg_pool2d(padded, 3, 1) - luma
    wanted = luma + strength / 10 * (8 * luma - around)
    highest = functional.max_pool2d(padded, 3, 1)
    lowest = -functional.max_pool2d(-padded, 3, 1)
    return y + (wanted.clamp(lowest, highest) - luma)


def sharpen_each(y: Tensor, strength: float) -> Tensor:
    """The same kernel on each channel by itself, as the original has it: halos, and the border stays as it was."""
    kernel = y.new_full((3, 3), -strength / 10)
    kernel[1, 1] = 1 + 0.8 * strength
    sharper = y.clone()
    if min(y.shape[-2:]) > 2:
        inner = functional.conv2d(y, kernel.expand(3, 1, 3, 3), groups=3)
        sharper[..., 1:-1, 1:-1] = inner.clamp(0, 1)
    return sharper


def mirrored(length: int, wanted: int) -> Tensor:
    """Indices 0, 1, ..., length - 1, length - 2, ..., and back again at 0: as many as wanted."""
    index = torch.arange(wanted) % max(1, 2 * length - 2)
    return torch.minimum(index, 2 * length - 2 - index) if length > 1 else torch.zeros_like(index)


def to_tensor(rgb: Samples, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 or uint16 over the full range, or float in 0..1 -> (1, 3, H, W) float32 in 0..1."""
    # Eight bits go to a device as they are: a quarter of the bytes, and numbers are made of them there.
    values = devices.send(torch.from_numpy(rgb.copy() if rgb.dtype == np.uint8 else rgb.astype(np.float32)), device)
    made = torch.empty((1, 3, *rgb.shape[:2]), device=device).copy_(values.permute(2, 0, 1)[None])
    return made.div_(_most(rgb.dtype))


def to_samples(y: Tensor, dtype: np.dtype[Any]) -> Samples:
    """The inverse of `to_tensor`: values beyond 0..1 are cut off, the rest rounded to the nearest sample."""
    values = y[0].clamp(0, 1).mul_(_most(dtype))
    return to_host(values if dtype.kind == "f" else values.round_(), dtype)


def to_host(values: Tensor, dtype: np.dtype[Any]) -> Samples:
    """(3, H, W) of `dtype`'s range -> (H, W, 3) of it. Eight bits are made on the device: a quarter of the bytes."""
    if dtype == np.uint8:
        values = values.to(torch.uint8)
    return values.permute(1, 2, 0).contiguous().cpu().numpy().astype(dtype, copy=False)


def _most(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def scale_between(result: NDArray[Any], source: NDArray[Any]) -> int:
    """Return the whole scale between (H * scale, W * scale, 3) and (H, W, 3); ValueError if there is none."""
    scale = int(result.shape[0]) // int(source.shape[0])
    if scale < 1 or result.shape[:2] != (source.shape[0] * scale, source.shape[1] * scale):
        raise ValueError(f"{result.shape[1]}x{result.shape[0]} is no multiple of {source.shape[1]}x{source.shape[0]}")
    return scale
