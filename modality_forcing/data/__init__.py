"""The host side of training: records, mixtures, sparsity, augmentation and batches."""
