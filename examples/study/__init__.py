"""Fine-tuning with many regularizers, tasks and seeds."""
