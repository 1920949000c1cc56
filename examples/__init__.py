"""Programs that use nni_cafenet."""
