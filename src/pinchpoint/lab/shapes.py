"""The models that the lab knows: what their published configuration says about sizes. No weights, no speed."""

import msgspec

from pinchpoint.lab.hardware import Precision

BYTES_PER_VALUE: dict[Precision, int] = {"bf16": 2, "fp8": 1}
BF16_BYTES = BYTES_PER_VALUE["bf16"]


class Experts(msgspec.Struct, frozen=True):
    """Routed experts: in each of `layers` layers a token goes through `active` of `count`, each of `parameters`
    parameters. Shared experts belong to the dense part."""

    count: int
    active: int
    layers: int
    parameters: float

    @property
    def all_parameters(self) -> float:
        return self.count * self.layers * self.parameters

    def touched_ratio(self, tokens: float) -> float:
        """Expected share of the experts that at least one of so many tokens is routed to, evenly and independently:
        1 - (1 - active/count)^tokens."""
        return 1.0 - (1.0 - self.active / self.count) ** tokens


class Latent(msgspec.Struct, frozen=True):
    """Multi-head latent attention: the cache holds one vector of `rank` and one rotary key of `rotary` values per
    token and layer, for all heads; prompts are computed with full keys of key_dim and values of value_dim."""

    rank: int
    rotary: int
    key_dim: int
    value_dim: int


class ModelShape(msgspec.Struct, frozen=True):
    """A decoder-only transformer: grouped-query attention unless `latent`, dense unless `experts`.

    parameters counts everything; the input embedding (vocabulary x hidden) is looked up, not streamed, unless it is
    also the output head (tied).
    """

    name: str
    parameters: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    experts: Experts | None = None
    latent: Latent | None = None
    tied: bool = False
    published_precision: Precision = "bf16"
    """Of the weights that its makers publish."""

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def streamed_parameters(self) -> float:
        """Read in a step that touches every expert: all but a separate input embedding."""
        return self.parameters - (0 if self.tied else self.embedding_parameters)

    @property
    def layer_parameters(self) -> float:
        """In the layers: neither embedding nor head."""
        return self.streamed_parameters - self.embedding_parameters

    @property
    def dense_parameters(self) -> float:
        """In the layers and not in routed experts."""
        return self.layer_parameters - (self.experts.all_parameters if self.experts else 0)

    @property
    def active_parameters(self) -> float:
        """In the layers, used by each token."""
        if self.experts is None:
            return self.layer_parameters
        return self.dense_parameters + self.experts.active * self.experts.layers * self.experts.parameters

    @property
    def kv_shards(self) -> int:
        """Into how many parts tensor parallelism can cut the cache; beyond, GPUs hold copies."""
        return 1 if self.latent else self.kv_heads

    def weights_bytes(self, precision: Precision = "bf16") -> float:
        """All weights; embedding and head stay in bf16 in published fp8 checkpoints."""
        ends = self.parameters - self.layer_parameters
        return self.layer_parameters * BYTES_PER_VALUE[precision] + ends * BF16_BYTES

    def kv_bytes_per_token(self, precision: Precision = "bf16") -> int:
        """Every layer: K and V of every key-value head, or the latent vector."""
        values = self.latent.rank + self.latent.rotary if self.latent else 2 * self.kv_heads * self.head_dim
        return self.layers * values * BYTES_PER_VALUE[precision]

    def decode_flops_per_pair(self) -> float:
        """A dot product and a weighted sum per query head and cached token, 2 FLOP each per value; with latent
        attention over the compressed vector (absorbed form)."""
        if self.latent:
            return 2 * self.heads * (2 * self.latent.rank + self.latent.rotary) * self.layers
        return 4 * self.heads * self.head_dim * self.layers

    def prefill_flops_per_pair(self) -> float:
        if self.latent:
            return 2 * self.heads * (self.latent.key_dim + self.latent.value_dim) * self.layers
        return 4 * self.heads * self.head_dim * self.layers


# Published config.json of each model; context is what the servers below offer, not always the model's longest.
MODELS = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3-8b", 8.03e9, 32, 4096, 32, 8, 128, 128_256, 8192),
        ModelShape("llama-3.1-8b", 8.03e9, 32, 4096, 32, 8, 128, 128_256, 131_072),
        ModelShape("llama-3.2-1b", 1.236e9, 16, 2048, 32, 8, 64, 128_256, 131_072, tied=True),
        ModelShape("qwen2.5-7b", 7.62e9, 28, 3584, 28, 4, 128, 152_064, 8192),
        ModelShape("qwen3-32b", 32.8e9, 64, 5120, 64, 8, 128, 151_936, 40_960),
        ModelShape("smollm2-135m", 0.1345e9, 30, 576, 9, 3, 64, 49_152, 8192, tied=True),
        ModelShape("mistral-7b", 7.24e9, 32, 4096, 32, 8, 128, 32_000, 32_768),
        ModelShape("llama-2-7b", 6.74e9, 32, 4096, 32, 32, 128, 32_000, 4096),
        ModelShape("llama-2-70b", 68.98e9, 80, 8192, 64, 8, 128, 32_000, 4096),
        ModelShape("llama-3-70b", 70.6e9, 80, 8192, 64, 8, 128, 128_256, 8192),
        ModelShape("llama-3.1-70b", 70.6e9, 80, 8192, 64, 8, 128, 128_256, 131_072),
        ModelShape(
            "mixtral-8x7b", 46.7e9, 32, 4096, 32, 8, 128, 32_000, 32_768,
            experts=Experts(8, 2, 32, 3 * 4096 * 14_336),
        ),
        ModelShape(
            "qwen3-235b-a22b", 235.1e9, 94, 4096, 64, 4, 128, 151_936, 40_960,
            experts=Experts(128, 8, 94, 3 * 4096 * 1536),
        ),
        ModelShape(
            "deepseek-v2-lite", 15.7e9, 27, 2048, 16, 16, 128, 102_400, 32_768,
            experts=Experts(64, 6, 26, 3 * 2048 * 1408), latent=Latent(512, 64, 192, 128),
        ),
        ModelShape(
            "deepseek-v3", 671e9, 61, 7168, 128, 128, 128, 129_280, 131_072,
            experts=Experts(256, 8, 58, 3 * 7168 * 2048), latent=Latent(512, 64, 192, 128), published_precision="fp8",
        ),
        ModelShape(
            "deepseek-r1", 671e9, 61, 7168, 128, 128, 128, 129_280, 131_072,
            experts=Experts(256, 8, 58, 3 * 7168 * 2048), latent=Latent(512, 64, 192, 128), published_precision="fp8",
        ),
    )
}  # fmt: skip
