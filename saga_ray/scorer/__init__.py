"""The joint between encoder and frozen MLLM: pairs and visual tokens in, `ScoreResult` out."""
