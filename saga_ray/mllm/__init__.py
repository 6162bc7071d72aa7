"""The frozen multimodal LLM: prompt, loading, sampling, exact gradients, attention, answers."""
