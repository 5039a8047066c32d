"""Programs of ``torch.export``: read as data, and as models."""

from __future__ import annotations

from deltaconvert.exported.model import ExportedModel

__all__ = ["ExportedModel"]
