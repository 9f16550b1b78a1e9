"""Machinery: data, networks, training, runs, sweeps and the device they run on."""
