"""Images: data sets by name, one's own images, arrays in memory; their splits, batches and augmentation."""
