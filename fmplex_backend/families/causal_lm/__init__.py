"""Language models that generate text: Llama, Qwen, Gemma, Phi, SmolLM and their like."""
