"""How the next token of a request is chosen. No torch, so clients and the API stay light."""

from dataclasses import dataclass

from model.errors import SamplingError

MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20
MAX_TEMPERATURE = 2.0
MAX_PENALTY = 2.0
# Wide enough for any use, and narrow enough that no finite logit becomes infinite.
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
MAX_BIAS = 100.0
# OpenAI's limit.
MAX_BIASES = 300

_RANGES = {
    "temperature": (0.0, MAX_TEMPERATURE),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-MAX_PENALTY, MAX_PENALTY),
    "frequency_penalty": (-MAX_PENALTY, MAX_PENALTY),
    "repetition_penalty": (MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling of one request; checked once, when made.

    Attributes:
        temperature: 0 is greedy; 1 samples from the model's own distribution.
        top_p: keep the smallest set of tokens whose probability reaches this.
        top_k: keep this many of the most likely tokens; 0 keeps all.
        min_p: keep tokens that are at least this many times as likely as the most likely one.
        presence_penalty: subtracted from the logit of every token that was generated.
        frequency_penalty: subtracted once for each time that the token was generated.
        repetition_penalty: divides positive logits of tokens of the prompt and the answer, and
            multiplies negative ones; 1 changes nothing.
        logit_bias: (token id, what is added to its logit), each id once.
        seed: with the token's position, the only source of randomness.
        max_tokens: most tokens to generate.
        stop_token_ids: generation ends after one of these (the end-of-sequence id is one).
        num_logprobs: how many most likely tokens to report at each position, None for none at all;
            0 reports the chosen token's alone.

    Raises:
        SamplingError: a value is out of range; names the field.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 16
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None

    def __post_init__(self) -> None:
        for field, (low, high) in _RANGES.items():
            if not low <= getattr(self, field) <= high:
                want = f"a number from {low:g} to {high:g}"
                raise SamplingError(field, getattr(self, field), want)
        if not 0.0 < self.top_p <= 1.0:
            raise SamplingError("top_p", self.top_p, "a number above 0, up to 1")
        if self.top_k < 0:
            raise SamplingError("top_k", self.top_k, "a whole number from 0")
        if not 0 <= self.seed <= MAX_SEED:
            raise SamplingError("seed", self.seed, f"a whole number from 0 to {MAX_SEED}")
        if self.max_tokens < 1:
            raise SamplingError("max_tokens", self.max_tokens, "a whole number from 1")
        if self.num_logprobs is not None and not 0 <= self.num_logprobs <= MAX_LOGPROBS:
            raise SamplingError("logprobs", self.num_logprobs, f"from 0 to {MAX_LOGPROBS}")
        _check_biases(self.logit_bias)

    @property
    def changes_logits(self) -> bool:
        """Whether a bias or a penalty may change even what greedy choice takes."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or bool(self.logit_bias)
        )


def _check_biases(biases: tuple[tuple[int, float], ...]) -> None:
    if len(biases) > MAX_BIASES:
        raise SamplingError("logit_bias", len(biases), f"at most {MAX_BIASES} tokens")
    if len({token_id for token_id, _ in biases}) < len(biases):
        raise SamplingError("logit_bias", "a token id twice", "each id once")
    for token_id, bias in biases:
        if token_id < 0:
            raise SamplingError("logit_bias", token_id, "token ids from 0")
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise SamplingError("logit_bias", bias, f"numbers from {-MAX_BIAS:g} to {MAX_BIAS:g}")
