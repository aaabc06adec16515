"""Helpers of the tests: small networks, samples, bundles, devices, and stand-ins for a GPU."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
