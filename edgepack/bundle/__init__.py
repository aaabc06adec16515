"""Writing and admitting bundles on the host; reading uses the loader, `edgepack.runtime`."""

from edgepack.bundle.admit import Admitted, Demands, admit, copy_sealed, require_accepted
from edgepack.bundle.publish import publish, write_signature
from edgepack.bundle.read import read_report
from edgepack.bundle.write import Contents, OtherSize, encode_compact, write

__all__ = [
    "Admitted",
    "Contents",
    "Demands",
    "OtherSize",
    "admit",
    "copy_sealed",
    "encode_compact",
    "publish",
    "read_report",
    "require_accepted",
    "write",
    "write_signature",
]
