"""Preview of the network input: crops with their targets, before and after each augmentation."""

from __future__ import annotations

from fasthg.data.preview.crops import AUGMENTATIONS, Crop, Preview, Row, make_preview

__all__ = ["AUGMENTATIONS", "Crop", "Preview", "Row", "make_preview"]
