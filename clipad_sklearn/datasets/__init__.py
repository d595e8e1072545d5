"""Generated images with known defects, and loaders of labelled data sets."""

from ._defect_images import (
    DEFECT_FAMILIES,
    OBJECT_FAMILIES,
    TEXTURE_FAMILIES,
    make_defect_images,
)
from ._loaders import load_image_folder, load_mvtec_ad, load_sewer_ml, load_visa

__all__ = [
    "DEFECT_FAMILIES",
    "OBJECT_FAMILIES",
    "TEXTURE_FAMILIES",
    "load_image_folder",
    "load_mvtec_ad",
    "load_sewer_ml",
    "load_visa",
    "make_defect_images",
]
