"""Training, comparing and serving classifiers on a converted data set."""
