"""What is put inside a backbone for one task: PEFT adapters, batched across tasks."""
