"""What the trainer does when: context length and learning rate by the share of time that is gone.

Pure arithmetic, so that a run of any length passes through the same stages.
"""

CONTEXT_TOKENS = 1_024

# (from this share of the time, context in tokens): copying is learnt sooner on short texts.
_STAGES = ((0.0, 320), (0.4, 512), (0.7, CONTEXT_TOKENS))
_WARMUP_STEPS = 30
_DECAY_SHARE = 0.5


def context_at(progress: float) -> int:
    """Longest training text, in tokens, when `progress` (0 to 1) of the time is gone."""
    return max(tokens for start, tokens in _STAGES if progress >= start)


def learning_rate_factor(progress: float, step: int) -> float:
    """Rise over the first steps, stay at one, then fall linearly to zero over the last part."""
    rise = (step + 1) / _WARMUP_STEPS
    fall = (1 - progress) / _DECAY_SHARE
    return max(0.0, min(1.0, rise, fall))
