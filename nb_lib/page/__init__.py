"""From numbers to a page: figures with sliders, intervals over seeds."""
