"""Bytes to pixels and back."""

from hiresfix.images.alpha import bleed, enlarge_alpha
from hiresfix.images.reading import decode, read_header
from hiresfix.images.values import Encoded, Header, Limits, Picture, check_format, check_output
from hiresfix.images.writing import encode

__all__ = [
    "Encoded",
    "Header",
    "Limits",
    "Picture",
    "bleed",
    "check_format",
    "check_output",
    "decode",
    "encode",
    "enlarge_alpha",
    "read_header",
]
