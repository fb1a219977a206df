"""The training room: data, augmentation, architectures, training, evaluation, calibration."""
