"""Private: the CLIP behind `OpenCLIP`, and the only room that imports torch at the top.

It hands on `OpenCLIP`, because detectors saved by 0.1.0 find it in this module.
"""

from .settings import OpenCLIP as OpenCLIP
