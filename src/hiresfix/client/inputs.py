"""Images as callers pass them, converted into what a request can carry.

Accepts a path, bytes, an open binary file, an http(s) or data URL, a Pillow image or an array. Does not import Pillow
or numpy unless the caller uses them. Files are read in pieces while they are sent. The server decides whether the bytes
are an image.
"""

from __future__ import annotations

import base64
import io
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, runtime_checkable

from hiresfix.client.effects import OnUpload, StreamedBody
from hiresfix.client.values import Upload
from hiresfix.errors import ImageError

PIECE_BYTES = 64 * 1024
"""Read and sent at once."""


@runtime_checkable
class PillowImage(Protocol):
    """The parts of `PIL.Image.Image` that are used here."""

    @property
    def mode(self) -> str: ...
    def getexif(self) -> Any: ...
    def save(self, fp: Any, format: str | None = None, **params: Any) -> None: ...  # noqa: A002  # Pillow's own name


@runtime_checkable
class Array(Protocol):
    """The parts of `numpy.ndarray` that are used here: (H, W), (H, W, 3) or (H, W, 4), uint8."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


Image: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | PillowImage | Array | Upload
"""A path, a URL (str), the bytes of an image file, an open image file, a Pillow image, an array, or an upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Image file to send. `open` returns it from its beginning, as often as it is called; `size` is in bytes."""

    name: str
    size: int
    open: Callable[[], BinaryIO] = field(repr=False)

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()


_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
"""Pillow modes that PNG stores without loss."""
_URL = re.compile(r"https?://|data:", re.IGNORECASE)


def url_of(image: Image) -> str | None:
    """Return the URL if the image is given as one or as an upload, else None."""
    if isinstance(image, Upload):
        return image.url
    return image if isinstance(image, str) and _URL.match(image) else None


def source_of(image: Image) -> ImageSource:
    """Return the source for everything but a URL. May read or encode, so call it where blocking is fine.

    Raises ImageError for a missing or empty file, TypeError for a value that `Image` does not allow.
    """
    if isinstance(image, str | os.PathLike):
        return _of_path(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return _of_bytes(bytes(image), "image")
    if isinstance(image, PillowImage):
        return _of_bytes(encoded(image), "image")
    if isinstance(image, Array):
        return _of_bytes(encoded(_from_array(image)), "image")
    if hasattr(image, "read"):
        return _of_bytes(_read_binary(image), Path(str(getattr(image, "name", "image"))).name)
    raise TypeError(
        f"An image is a path, a URL, bytes, an open file, a PIL.Image or an array, not {type(image).__name__}."
    )


def _from_array(array: Array) -> PillowImage:
    from PIL.Image import fromarray

    try:
        image: PillowImage = fromarray(array)
    except (TypeError, ValueError) as error:
        shape = array.__array_interface__["shape"]
        raise TypeError(
            f"An array is (H, W), (H, W, 3) or (H, W, 4) of uint8, and this one is {shape} of "
            f"{getattr(array, 'dtype', 'another type')}. Convert it: (255 * array).clip(0, 255).astype('uint8')."
        ) from error
    return image


def encoded(image: PillowImage) -> bytes:
    """Encode a Pillow image without loss, with profile and orientation: as PNG, or TIFF for modes PNG lacks."""
    container = "PNG" if image.mode in _PNG_MODES else "TIFF"
    buffer = io.BytesIO()
    exif = image.getexif()
    image.save(buffer, container, **({"exif": exif.tobytes()} if len(exif) else {}))
    return buffer.getvalue()


def _of_path(path: Path) -> ImageSource:
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    if not path.is_file():
        raise ImageError(f"{path} is not a file. Name an image file.")
    if not status.st_size:
        raise ImageError(f"{path} is empty. Name an image file.")
    return ImageSource(name=path.name, size=status.st_size, open=lambda: path.open("rb"))


def _of_bytes(data: bytes, name: str) -> ImageSource:
    if not data:
        raise ImageError("The image has no bytes. Pass the bytes of an image file.")
    return ImageSource(name=name, size=len(data), open=lambda: io.BytesIO(data))


def _read_binary(file: Any) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError("The file is open as text. Open it with mode 'rb'.")
    return data


def data_uri(data: bytes) -> str:
    """Return the bytes as a data URI. Servers ignore the media type and look at the bytes."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def multipart(source: ImageSource, on_upload: OnUpload | None) -> tuple[str, StreamedBody]:
    """Return content type and body of a form with the source as its part `file` (RFC 7578), read while it is sent.

    Sending raises ImageError if the file's size changes meanwhile: the announced length would be wrong.
    """
    boundary = secrets.token_hex(16)
    name = re.sub(r'[\x00-\x1f\x7f"\\]', "_", source.name)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def pieces() -> Iterator[bytes]:
        yield head
        left = source.size
        with source.open() as file:
            while piece := file.read(PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
        if left:
            raise ImageError(f"{source.name} changed while it was sent. Try again when it is complete.")
        yield tail

    body = StreamedBody(pieces=pieces, length=len(head) + source.size + len(tail), report=on_upload)
    return f"multipart/form-data; boundary={boundary}", body
