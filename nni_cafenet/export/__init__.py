"""What leaves nni_cafenet: slim models, slim files, ONNX, NNI masks."""
