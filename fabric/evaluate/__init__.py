"""Language-model evaluation: loss, bits per byte, recall, minimal pairs, samples."""
