"""What holds for all tests, doctests included, before numpy or torch is imported."""

import os

# Tests run in several processes; more threads than cores slow torch down many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")
