"""Rewrite part of a transformer in natural language, and measure what that costs in next-token loss."""

__version__ = "0.1.0"
