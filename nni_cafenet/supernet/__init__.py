"""The supernet: running, training and scoring sub-networks of one shared model."""
