"""hiresfix: open, self-hosted creative image upscaling. Importing it loads neither torch nor a web framework."""

from hiresfix.recipe import Recipe

__all__ = ["Recipe", "__version__"]
__version__ = "0.1.0"
