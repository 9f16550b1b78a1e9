"""What methods, measures and trainings cost, as ratios of ways that take turns within one run."""
