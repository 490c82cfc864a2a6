"""What callers hand over as a picture, made into what a request can carry.

Takes a path, bytes, an open binary file, an http(s) or data URL, a Pillow image or an array, without importing Pillow
or numpy for those who use neither. Files are read when they are sent, piece by piece. Whether the bytes are a picture
is for the server.
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

from hiresfix.client.effects import Body
from hiresfix.client.values import Upload
from hiresfix.errors import PictureError

PIECE = 64 * 1024
"""Bytes read and sent at once."""


@runtime_checkable
class PillowImage(Protocol):
    """What is asked of a `PIL.Image.Image`."""

    @property
    def mode(self) -> str: ...
    def getexif(self) -> Any: ...
    def save(self, fp: Any, format: str | None = None, **params: Any) -> None: ...  # noqa: A002  # Pillow's own name


@runtime_checkable
class Array(Protocol):
    """What is asked of a `numpy.ndarray`: (H, W), (H, W, 3) or (H, W, 4), uint8."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


Image: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | PillowImage | Array | Upload
"""A path, or a URL as a str; the bytes of a picture file; such a file, open; a Pillow image; an array; an upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A picture to be sent: `open` gives it from its beginning, as often as it is called; `size` in bytes."""

    name: str
    size: int
    open: Callable[[], BinaryIO] = field(repr=False)

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()


_PLAIN_IN_PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_URL = re.compile(r"https?://|data:", re.IGNORECASE)


def url_of(image: Image) -> str | None:
    """The URL, if that is what the picture was given as."""
    if isinstance(image, Upload):
        return image.url
    return image if isinstance(image, str) and _URL.match(image) else None


def source_of(image: Image) -> Source:
    """Everything but a URL. May read or encode: call it where that may take a while.

    Raises PictureError for what is no file or is empty, TypeError for what is none of `Image`.
    """
    if isinstance(image, str | os.PathLike):
        return _of_path(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return _of_bytes(bytes(image), "picture")
    if isinstance(image, PillowImage):
        return _of_bytes(encoded(image), "picture")
    if isinstance(image, Array):
        return _of_bytes(encoded(_drawn(image)), "picture")
    if hasattr(image, "read"):
        return _of_bytes(_all_of(image), Path(str(getattr(image, "name", "picture"))).name)
    raise TypeError(
        f"A picture is a path, a URL, bytes, an open file, a PIL.Image or an array, not {type(image).__name__}."
    )


def _drawn(array: Array) -> PillowImage:
    from PIL.Image import fromarray

    try:
        drawn: PillowImage = fromarray(array)
    except (TypeError, ValueError) as error:
        shape = array.__array_interface__["shape"]
        raise TypeError(
            f"An array is (H, W), (H, W, 3) or (H, W, 4) of uint8, and this one is {shape} of "
            f"{getattr(array, 'dtype', 'another type')}. Convert it: (255 * array).clip(0, 255).astype('uint8')."
        ) from error
    return drawn


def encoded(image: PillowImage) -> bytes:
    """A Pillow image without loss, its profile and orientation included: PNG, or TIFF for what PNG cannot hold."""
    container = "PNG" if image.mode in _PLAIN_IN_PNG else "TIFF"
    buffer = io.BytesIO()
    exif = image.getexif()
    image.save(buffer, container, **({"exif": exif.tobytes()} if len(exif) else {}))
    return buffer.getvalue()


def _of_path(path: Path) -> Source:
    try:
        state = path.stat()
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    if not path.is_file():
        raise PictureError(f"{path} is not a file. Name a picture.")
    if not state.st_size:
        raise PictureError(f"{path} is empty. Name a picture.")
    return Source(name=path.name, size=state.st_size, open=lambda: path.open("rb"))


def _of_bytes(data: bytes, name: str) -> Source:
    if not data:
        raise PictureError("The picture has no bytes. Pass those of a picture file.")
    return Source(name=name, size=len(data), open=lambda: io.BytesIO(data))


def _all_of(file: Any) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError("The file is open as text. Open it with mode 'rb'.")
    return data


def data_uri(data: bytes) -> str:
    """Bytes as a data URI. The type is only for form's sake: servers look at the bytes."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def multipart(source: Source, report: Callable[[int, int], object] | None) -> tuple[str, Body]:
    """The source as the part `file` of a form, read while it is sent: content type and body (RFC 7578).

    A file that changes its size meanwhile is a PictureError, because what was announced cannot be sent any more.
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
            while piece := file.read(PIECE):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
        if left:
            raise PictureError(f"{source.name} changed while it was sent. Try again when it is complete.")
        yield tail

    body = Body(pieces=pieces, length=len(head) + source.size + len(tail), report=report)
    return f"multipart/form-data; boundary={boundary}", body
