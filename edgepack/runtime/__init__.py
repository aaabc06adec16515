"""The loader: shipped inside every bundle; numpy and one engine, nothing else.

import sys
sys.path.insert(0, "model.edgepack")
from runtime import load

model = load()
outputs = model(image=array)
"""

from .model import Model, load

__all__ = ["Model", "load"]
