"""Noise in SGD and the minima it finds: noise enhancement (NE), SmoothOut, and what both papers measured.

Import from the modules (``from nb_lib.smoothout import SmoothOut``); importing the package alone loads nothing heavy.
"""

import time

__version__ = "0.1.0"
#: When this process began to load the library, of ``time.monotonic()``: a budget given in the shell counts from here.
LOADED = time.monotonic()
