"""Fine-tuned checkpoints of one model become tasks on one backbone: `fmplex import`."""
