"""The bundled demo MLLM: a small Qwen3-VL that describes and compares drawn birds, and the recipe that makes it."""
