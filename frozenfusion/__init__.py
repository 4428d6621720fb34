"""Classify image–text pairs with a frozen, cached image tower and a trained text-and-fusion head."""

__version__ = "0.1.0"
