"""Noise in SGD and the minima it finds: noise enhancement (NE), SmoothOut, and what both papers measured.

Import from the modules (``from nb_lib.smoothout import SmoothOut``); importing the package alone loads nothing heavy.
"""

__version__ = "0.1.0"
