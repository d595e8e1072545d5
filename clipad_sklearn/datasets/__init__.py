"""Generated images with known defects."""

from ._defect_images import (
    DEFECT_FAMILIES,
    OBJECT_FAMILIES,
    TEXTURE_FAMILIES,
    make_defect_images,
)

__all__ = [
    "DEFECT_FAMILIES",
    "OBJECT_FAMILIES",
    "TEXTURE_FAMILIES",
    "make_defect_images",
]
