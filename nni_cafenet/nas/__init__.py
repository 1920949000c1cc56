"""NNI: the model space and the strategy; the only importers of nni."""
