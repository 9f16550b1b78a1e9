"""What methods, measures and trainings cost, as ratios of ways that take turns within one run."""

import os

# as in `nb_lib.__main__`, read by torch when it is loaded: threads that wait leave the cores to others' work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
