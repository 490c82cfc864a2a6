"""CPU backends of one x4 network side by side, and the receptive field of each network.

    python -m benchmarks.superres [--image FILE] [--side N] [--threads N] [--halo] [--write]

Every backend upscales the same image with realesrgan-x4plus. PSNR against float32 shows where speed costs accuracy.
ncnn and OpenVINO are measured if they are installed: pip install ncnn openvino
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import tables
from hiresfix.engine import devices
from hiresfix.engine.pixels import resampling
from hiresfix.engine.superres import networks, tiled_inference
from hiresfix.engine.weights import superres_files
from hiresfix.models.catalog import WEIGHTS, WeightFile, find_weights

RUNS = 3
CPU = torch.device("cpu")
Pixels = NDArray[np.float32]
Table = list[dict[str, Any]]
Backend = Callable[[], Pixels]
"""Upscales the image of the benchmark to (H, W, 3) float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTiming:
    """Time of a backend: `first_s` includes compiling and warm-up, the others are medians after it."""

    backend: str
    first_s: float
    seconds: float
    cpu_seconds: float
    megapixels_per_s: float
    psnr_db: float | None
    note: str = ""


class PlainRRDBNet(nn.Module):
    """The forward pass of RRDBNet as published, on the whole image, with the modules of the engine."""

    def __init__(self, network: networks.RRDBNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        net = self.network
        first = net.conv_first(x)
        y = first
        for block in net.body:
            assert isinstance(block, networks.RRDB)
            inner = y
            for dense in (block.rdb1, block.rdb2, block.rdb3):
                inner = self._dense(dense, inner)
            y = y + 0.2 * inner
        y = first + net.conv_body(y)
        for name in ("conv_up1", "conv_up2"):
            y = functional.leaky_relu(net.get_submodule(name)(functional.interpolate(y, scale_factor=2)), 0.2)
        last: Tensor = net.conv_last(functional.leaky_relu(net.conv_hr(y), 0.2))
        return last

    @staticmethod
    def _dense(block: networks.DenseBlock, x: Tensor) -> Tensor:
        seen = x
        for conv in (block.conv1, block.conv2, block.conv3, block.conv4):
            seen = torch.cat((seen, functional.leaky_relu(conv(seen), 0.2)), 1)
        return torch.add(x, block.conv5(seen), alpha=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="its centre is used; default: a generated test image")
    parser.add_argument("--side", type=int, default=256, help="side of the image in pixels")
    parser.add_argument("--threads", type=int, help="1 makes CPU seconds comparable on a busy machine")
    parser.add_argument("--halo", action="store_true", help="measure the receptive field of each network instead")
    parser.add_argument("--write", action="store_true", help="write the tables under benchmarks/results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rgb = centre(arguments.image, arguments.side) if arguments.image else test_image(arguments.side)
    with torch.inference_mode():
        name = "superres-halo" if arguments.halo else "superres-cpu"
        text, data = measure_halos(rgb) if arguments.halo else measure_backends(rgb)
    tables.publish(name, text, data, write=arguments.write)


def centre(path: Path, side: int) -> NDArray[np.uint8]:
    """Return the middle `side` x `side` pixels of an image file."""
    image = Image.open(path).convert("RGB")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def test_image(side: int) -> NDArray[np.uint8]:
    """Return gratings of rising frequency, a hard edge and grain, like the content of a photo."""
    y, x = np.mgrid[:side, :side] / side
    waves = np.stack([np.sin(40 * np.pi * (x * y + k / 6)) for k in range(3)], -1)
    grain = np.random.default_rng(0).normal(0, 8, (side, side, 3))
    edge = 50 * np.sign(x + 2 * y - 1.4)[..., None]
    return np.asarray(np.clip(128 + 60 * waves + edge + grain, 0, 255), np.uint8)


# --- backends ---


def measure_backends(rgb: NDArray[np.uint8]) -> tuple[str, Table]:
    references: dict[bool, Pixels] = {}
    timings = []
    for name, note, build in backends(rgb):
        framed = name.startswith("hiresfix")  # it mirrors the image at its borders, where the others pad with black
        try:
            timing, pixels = timed(name, note, build, references.get(framed))
        except ImportError as error:
            print(f"{name}: skipped, {error}. pip install ncnn openvino", flush=True)
            continue
        references.setdefault(framed, pixels)
        timings.append(timing)
        print(timing, flush=True)
    return backends_table(timings, len(rgb)), [asdict(timing) for timing in timings]


def timed(name: str, note: str, build: Callable[[], Backend], reference: Pixels | None) -> tuple[BackendTiming, Pixels]:
    start = time.perf_counter()
    backend = build()
    pixels = backend()
    first = time.perf_counter() - start
    seconds, cpu_seconds = [], []
    for _ in range(RUNS):
        start, cpu_start = time.perf_counter(), time.process_time()
        pixels = backend()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    middle = statistics.median(seconds)
    return (
        BackendTiming(
            backend=name,
            first_s=round(first, 1),
            seconds=round(middle, 2),
            cpu_seconds=round(statistics.median(cpu_seconds), 2),
            megapixels_per_s=round(pixels.shape[0] * pixels.shape[1] / 1e6 / middle, 3),
            psnr_db=None if reference is None else round(psnr(pixels, reference), 1),
            note=note,
        ),
        pixels,
    )


def psnr(a: Pixels, b: Pixels) -> float:
    error = np.mean((a.clip(0, 1) - b.clip(0, 1)) ** 2, dtype=np.float64)
    return float(-10 * np.log10(max(error, 1e-12)))


def backends(rgb: NDArray[np.uint8]) -> Iterator[tuple[str, str, Callable[[], Backend]]]:
    x = resampling.to_tensor(rgb, CPU)
    bf16 = torch.bfloat16
    yield "torch float32", "reference", lambda: plain(x, torch.float32, channels_last=False)
    yield "torch float32, channels last", "", lambda: plain(x, torch.float32, channels_last=True)
    yield "torch bfloat16", "", lambda: plain(x, bf16, channels_last=False)
    yield "torch bfloat16, channels last", "", lambda: plain(x, bf16, channels_last=True)
    side = len(rgb)
    best = devices.choose_dtype(CPU)
    yield "hiresfix float32", "reference of the rows below", lambda: ours(rgb, side, torch.float32)
    yield "hiresfix", "bfloat16 blocks, float32 where it is visible; mirrored borders", lambda: ours(rgb, side, best)
    yield "hiresfix, half the tile", "the same in bands of rows", lambda: ours(rgb, side // 2, best)
    yield "OpenVINO float32", "", lambda: openvino(x, "f32")
    yield "OpenVINO bfloat16", "", lambda: openvino(x, "bf16")
    yield "ncnn float32", "", lambda: ncnn(rgb, bf16=False)
    yield "ncnn bfloat16 storage", "", lambda: ncnn(rgb, bf16=True)
    yield "torch.compile bfloat16", "inductor", lambda: plain(x, bf16, channels_last=True, compiled=True)


def x4plus() -> WeightFile:
    weight = find_weights("realesrgan-x4plus")
    assert weight is not None
    return weight


def plain(x: Tensor, dtype: torch.dtype, *, channels_last: bool, compiled: bool = False) -> Backend:
    network = superres_files.load(x4plus())
    assert isinstance(network, networks.RRDBNet)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = PlainRRDBNet(network).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    call = torch.compile(model) if compiled else model
    inputs = x.to(dtype, memory_format=layout)
    return lambda: call(inputs)[0].permute(1, 2, 0).float().numpy()


def ours(rgb: NDArray[np.uint8], tile: int, dtype: torch.dtype) -> Backend:
    network = networks.place(superres_files.load(x4plus()), CPU, dtype)

    def backend() -> Pixels:
        wide = (rgb * np.uint16(257)).astype(np.uint16)  # 16 bits, so that rounding to 8 does not hide the precision
        result = tiled_inference.upscale(
            network, wide, tile, factor=4, postprocess=lambda y, x: y, report=lambda fraction: None
        )
        return np.asarray(result, np.float32) / np.float32(65535)

    return backend


def openvino(x: Tensor, precision: str) -> Backend:
    import openvino

    network = superres_files.load(x4plus())
    assert isinstance(network, networks.RRDBNet)
    model = openvino.convert_model(PlainRRDBNet(network), example_input=x, input=[tuple(x.shape)])
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )
    return lambda: np.ascontiguousarray(compiled(x.numpy())[0][0].transpose(1, 2, 0)).astype(np.float32)


def ncnn(rgb: NDArray[np.uint8], *, bf16: bool) -> Backend:
    import ncnn

    path = superres_files.locate(x4plus())
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_vulkan_compute = False
    net.opt.use_bf16_storage = bf16
    net.load_param(str(path.with_suffix(".param")))
    net.load_model(str(path))

    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1).astype(np.float32) / 255)

    def backend() -> Pixels:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(planes).clone())  # a Mat does not keep its array alive
        _, out = extractor.extract("output")
        return np.array(out).transpose(1, 2, 0).astype(np.float32)

    return backend


def backends_table(timings: list[BackendTiming], side: int) -> str:
    lines = [
        "# x4 super-resolution on a CPU",
        "",
        f"realesrgan-x4plus, one {side}x{side} image, {torch.get_num_threads()} of {machine()}",
        f"Median of {RUNS} runs after a warm-up run.",
        "CPU seconds count all threads and depend less on other work of the machine. Megapixels of the result.",
        "PSNR is against float32.",
        "",
        "| backend | s | CPU s | MP/s | first run s | PSNR dB | |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for f in timings:
        quality = "" if f.psnr_db is None else f"{f.psnr_db:.1f}"
        lines.append(
            f"| {f.backend} | {f.seconds:.2f} | {f.cpu_seconds:.2f} | {f.megapixels_per_s:.3f} | {f.first_s:.1f} "
            f"| {quality} | {f.note} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Describe the processor: cores, and what it can do in bfloat16."""
    features = []
    if torch.cpu._is_avx512_bf16_supported():
        features.append("AVX-512 BF16")
    if torch.cpu._is_amx_tile_supported():
        features.append("AMX")
    cores = f"{os.cpu_count()} {platform.machine()} cores"
    return f"{cores}, {' and '.join(features) or 'no bfloat16'}; torch {torch.__version__}."


# --- halo ---

HALOS = (8, 16, 32, 48, 64, 80)
_HALO_COLUMNS = 160
_HALO_ROWS = 64
_HALO_BAND = 16
_CUT = 96


def measure_halos(rgb: NDArray[np.uint8]) -> tuple[str, Table]:
    """Measure the largest difference, in 1/255, that a cut at each halo distance makes."""
    noise = np.random.default_rng(1).integers(0, 256, rgb.shape, dtype=np.uint8)
    table: Table = []
    for weight in WEIGHTS:
        for dtype in (torch.float32, torch.bfloat16):
            network = networks.place(superres_files.load(weight), CPU, dtype)
            for image, pixels in (("image", rgb), ("noise", noise)):
                x = resampling.to_tensor(pixels[:_HALO_ROWS, :_HALO_COLUMNS], CPU)
                name = f"{weight.name}, {str(dtype).removeprefix('torch.')}, {image}"
                table.append({"of": name, **differences(network, x)})
                print(table[-1], flush=True)
    text = f"""# Receptive field of the networks

An image of {_HALO_COLUMNS}x{_HALO_ROWS} pixels is computed whole, and again without the columns left of a cut. The
numbers are the largest difference right of column {_CUT}, in 1/255, by the halo between the cut and that column. Bands
of rows need no halo: the last column compares the image in bands of {_HALO_BAND} rows with the whole image. In bfloat16
any small change flips some roundings within the receptive field: a floor that no halo lowers.
{machine()}

| network, precision, image | {" | ".join(str(halo) for halo in HALOS)} | bands |
| --- |{" --: |" * (len(HALOS) + 1)}
"""
    for row in table:
        text += f"| {row['of']} | " + " | ".join(f"{value:.2f}" for key, value in row.items() if key != "of") + " |\n"
    return text, table


def differences(network: networks.Network, x: Tensor) -> dict[str, float]:
    whole = network(x).clamp(0, 1)
    errors = {}
    for halo in HALOS:
        cut = network(x[..., _CUT - halo :]).clamp(0, 1)
        errors[str(halo)] = float((cut[..., halo * 4 :] - whole[..., _CUT * 4 :]).abs().max()) * 255
    starts = range(0, x.shape[2], _HALO_BAND)
    bands = [(x[:, :, top : top + _HALO_BAND], top + _HALO_BAND >= x.shape[2]) for top in starts]
    joined = torch.cat(list(networks.stream(network, bands, lambda work: None)), 2).clamp(0, 1)
    errors["bands"] = float((joined - whole).abs().max()) * 255
    return errors


if __name__ == "__main__":
    main()
