"""What holds for all tests, doctests included, before numpy or torch is imported."""

import gc
import os

# Tests run in several processes; more threads than cores slow torch down many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """What has been imported stays, and need not be looked through for garbage."""
    gc.collect()
    gc.freeze()
