"""Tests that need an NVIDIA GPU; `conftest` tells why they skip where there is none."""
