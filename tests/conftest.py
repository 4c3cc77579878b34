"""Settings of every test: a cache of machine code of its own, pictures without a screen, no deadlines.

This file is imported before any test imports nbbp or numba, which read the environment once.
"""

import atexit
import os
import shutil
import signal
import tempfile

# Numba does not see that a callee in another file has changed, so a cache from before an edit may hold stale
# machine code. Whoever sets the folder knows; otherwise every session starts with an empty one.
if "NUMBA_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="nbbp-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = _cache

os.environ["MPLBACKEND"] = "Agg"

from hypothesis import settings

# A first call compiles, so it has no deadline; the examples are the same in every run, so that CI is.
settings.register_profile("nbbp", deadline=None, derandomize=True, database=None)
settings.load_profile("nbbp")

# What a shell runs in the background has Ctrl-C ignored, and so would have the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
