"""Samples that are Python objects or functions that yield them."""
