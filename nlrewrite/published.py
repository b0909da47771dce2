"""The settings of the published experiments as profiles: what they did, in numbers, and what it takes to do it.

In: nothing. Out: for each profile the fields of a RewriteSpec that this program has, a `Published` with the numbers it
plans with, and the capabilities a run needs. Invariant: hub models and datasets stand at a full commit id, or at
`UNCHOSEN`, which plans and does not run.

The texts: "Partially Rewriting a Transformer in Natural Language" (Paulo & Belrose, January 2025; first version),
its later version "Can We Partially Rewrite Transformers in Natural Language?" (2025), the blog post "Partially
rewriting an LLM in natural language" (November 2024), and "Transcoders enable fine-grained interpretable circuit
analysis for language models" (Dunefsky, Chlenski, Nanda, April 2024).
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

UNCHOSEN = "0" * 40

CAPABILITIES: dict[str, str] = {
    "prompt-lengths": "next-token prompts of a random length",
    "circuits": "circuits through transcoders",
}
"""What rewritings by profiles ask for and this version does not have, in words that complete "it needs ..."."""


class Published(BaseModel):
    """What a published experiment did, as far as its numbers decide the cost of doing it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="The text that reports it.")
    latents: int = Field(ge=1, description="Latents of the coder; of each coder, where there are several.")
    coders: int = Field(default=1, ge=1)
    coder: str = Field(description="Kind of coder, and the published checkpoint where there is one.")
    training_tokens: int = Field(ge=0, description="Tokens the coder was trained on.")
    training_window: int = Field(default=2049, ge=1)
    activation_tokens: int = Field(ge=0, description="Tokens over which activations were collected.")
    least_active: int = Field(
        default=0, ge=0, description="Latents active on no more tokens than this were not explained."
    )
    explainer: str = ""
    explainer_examples: int = Field(default=0, ge=0)
    simulator: str = ""
    contexts: int = Field(default=0, ge=0, description="Contexts whose last token was simulated.")
    asked: int | None = Field(
        default=None, ge=1, description="Latents asked about in one context; none: all there are."
    )
    prompt: tuple[int, int] = Field(
        default=(32, 256), description="Shortest and longest next-token prompt, drawn uniformly."
    )
    evaluation_tokens: int = Field(default=0, ge=0, description="Tokens of an evaluation that needs no simulator.")
    hours: dict[str, float] = Field(default={}, description="What simulating took, by device, as its authors say.")

    def queries(self, latents: int) -> int:
        """Questions to the simulator: one for each context and latent asked about."""
        return self.contexts * (self.asked or latents)


CORPUS = 100_000  # documents to explain, calibrate and measure on; a coder is trained on those behind them
PILE = {
    "kind": "hub",
    "dataset": "monology/pile-uncopyrighted",
    "revision": "3be90335b66f24456a5d6659d9c8d208c0357119",
    "documents": CORPUS,
}
FINEWEB_EDU = {
    "kind": "hub",
    "dataset": "HuggingFaceFW/fineweb-edu",
    "revision": "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    "config": "sample-10BT",
    "documents": CORPUS,
}
OPENWEBTEXT = {
    "kind": "hub",
    "dataset": "Skylion007/openwebtext",
    "revision": "f3808c30e817981b845ec549c43e82bb467d8144",
    "documents": 100_000,
}
REDPAJAMA = {
    "kind": "hub",
    "dataset": "togethercomputer/RedPajama-Data-V2",
    "revision": UNCHOSEN,
    "config": "sample",
    "field": "raw_content",
    "documents": 100_000,
}
PYTHIA = {"kind": "hub", "model": "EleutherAI/pythia-160m", "revision": "50f5173d932e8e61f858120bcb800b97af589f46"}
SMOLLM2 = {
    "kind": "hub",
    "model": "HuggingFaceTB/SmolLM2-135M",
    "revision": "93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
}
GEMMA = {
    "kind": "hub",
    "model": "google/gemma-2-9b",
    "revision": "33c193028431c2fde6c6e51f29e6f17b60cbfac6",
    "dtype": "float16",
}
GPT2 = {"kind": "hub", "model": "openai-community/gpt2", "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e"}

LATER = "Can We Partially Rewrite Transformers in Natural Language? (2025)"
FIRST = "Partially Rewriting a Transformer in Natural Language (January 2025)"
BLOG = "Partially rewriting an LLM in natural language (November 2024)"
CIRCUITS = "Transcoders enable fine-grained interpretable circuit analysis for language models (April 2024)"
LLAMA_70B, LLAMA_8B = "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"
BATCH = 64 * 2049
ASKED: dict[str, Any] = {
    "writer": {
        "kind": "hub",
        "model": "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4",
        "revision": "2123003760781134cfc31124aa6560a45b491fdf",
        "dtype": "float16",
        "quantisation": "awq",
    },
    "write": {"min_active": 201},
    "reader": {"kind": "hub", "model": LLAMA_8B, "revision": "0e9e39f249a16976918f6564b8830bc894c89659"},
    "ask": {"order": "explanation", "flavour": "paper_top10"},
    "pilot": {"position": "last", "calibrator": "hurdle@log-odds"},
}
"""Who wrote and who read: 40 examples of all deciles, the sentence before the context, 32 tokens of it."""
REWRITING = ("prompt-lengths",)


def _rewriting(
    text: dict[str, Any], subject: dict[str, Any], coder: dict[str, Any], contexts: int, protocol: str = "p2"
) -> dict[str, Any]:
    """The fields that both versions of the paper share: 10 M tokens of 256 to explain with; the rest is a protocol."""
    return {
        "text": {"source": text},
        "tokens": {"window": 256, "limits": {"explain": 10_000_000 // 256, "calibrate": contexts, "report": contexts}},
        "subject": subject,
        "coder": coder,
        "activations": {"examples": 4},
        "explain": {"min_active": 201},
        "lengths": (),
        **ASKED,
        "evaluate": {"protocol": protocol, "positions": ("last",)},
    }


def _trained(text: dict[str, Any], layer: int, width: int, k: int, tokens: int, optimizer: str) -> dict[str, Any]:
    """A skip transcoder as the papers train it: on the stream as it comes, from the mean, by the rule for its rate."""
    return {
        "site": {"kind": "mlp", "layer": layer},
        "width": width,
        "k": k,
        "skip": True,
        "steps": tokens // BATCH,
        "batch": BATCH,
        "learning_rate": None,
        "loss": "fvu",
        "init": "uniform",
        "optimizer": optimizer,
        "warm_up": 1000,
        "decay": 1.0,
        "data": {**text, "documents": 100_000_000, "first": CORPUS, "tokens": tokens + BATCH},
        "order": "sequential",
        "window": 2049,
        "mix": 0,
        "precision": "bfloat16",
    }


PYTHIA_TRANSCODER = _trained(PILE, 6, 32_768, 32, 8_000_000_000, "adam")
SMOLLM2_TRANSCODER = _trained(FINEWEB_EDU, 15, 18_432, 128, 1_000_000_000, "signum")
PYTHIA_SAE = {
    "kind": "hub",
    "repo": "EleutherAI/sae-pythia-160m-32k",
    "revision": "2046768ae0c8cb69a2e8ed64f2eafb9f8c5fa294",
    "path": "layers.{layer}",
    "site": {"kind": "residual", "layer": 6},
    "width": 32_768,
    "k": 32,
}
GEMMA_SAE = {
    "kind": "hub",
    "repo": "google/gemma-scope-9b-pt-res",
    "revision": UNCHOSEN,
    "path": "layer_{layer}/width_131k/average_l0_49/params.npz",
    "site": {"kind": "residual", "layer": 11},
    "width": 131_072,
    "k": 49,
}
GPT2_TRANSCODERS = {
    "kind": "hub",
    "repo": "pchlenski/gpt2-transcoders",
    "revision": "4f3ca345572ce2d75018a60d10b4dca8bd899e99",
    "path": "final_sparse_autoencoder_gpt2-small_blocks.{layer}.ln2.hook_normalized_24576.pt",
    "site": {"kind": "mlp", "layer": 8},
    "width": 24_576,
}
LAMBDAS = (1e-5, 2e-5, 4e-5, 6e-5, 8e-5, 1.1e-4, 1.4e-4, 2e-4)
"""Ours: the text shows 8e-5 and the released script 1.4e-4; the other weights of its sweep of eight are not told."""


def _gpt2(coders: int) -> Published:
    """What was done on GPT-2 small, with so many transcoders: one a layer, or one a penalty of layer 8."""
    return Published(
        source=CIRCUITS,
        latents=24_576,
        coders=coders,
        coder="ReLU transcoder with an L1 penalty, no skip",
        training_tokens=60_000_000,
        training_window=128,
        activation_tokens=0,
        prompt=(128, 128),
        evaluation_tokens=1_638_400,
    )


RewriteFields = dict[str, Any]
PUBLISHED: dict[str, tuple[str, RewriteFields, Published, tuple[str, ...]]] = {
    "pythia-160m-transcoder": (
        "Pythia-160M, MLP of layer 6 (counted from 0), skip transcoder; the later version's settings.",
        _rewriting(PILE, PYTHIA, PYTHIA_TRANSCODER, 10_000),
        Published(
            source=LATER,
            latents=32_768,
            coder="TopK skip transcoder, k=32",
            training_tokens=8_000_000_000,
            activation_tokens=10_000_000,
            least_active=200,
            explainer=LLAMA_70B,
            explainer_examples=40,
            simulator=LLAMA_8B,
            contexts=10_000,
            hours={"A40": 4 * 8 * 7 * 24},
        ),
        REWRITING,
    ),
    "pythia-160m-transcoder-p1": (
        "As pythia-160m-transcoder, with the first version's summary: zero ablation, median absolute difference.",
        _rewriting(PILE, PYTHIA, PYTHIA_TRANSCODER, 10_000, "p1"),
        Published(
            source=FIRST,
            latents=32_768,
            coder="TopK skip transcoder, k=32",
            training_tokens=8_000_000_000,
            activation_tokens=10_000_000,
            least_active=200,
            explainer=LLAMA_70B,
            explainer_examples=40,
            simulator=LLAMA_8B,
            contexts=10_000,
        ),
        REWRITING,
    ),
    "pythia-160m-sae": (
        "Pythia-160M, residual stream after layer 6 (counted from 0), TopK SAE.",
        _rewriting(PILE, PYTHIA, PYTHIA_SAE, 1_000),
        Published(
            source=LATER,
            latents=32_768,
            coder="TopK SAE, k=32",
            training_tokens=8_000_000_000,
            activation_tokens=10_000_000,
            least_active=200,
            explainer=LLAMA_70B,
            explainer_examples=40,
            simulator=LLAMA_8B,
            contexts=1_000,
        ),
        REWRITING,
    ),
    "smollm2-135m-transcoder": (
        "SmolLM2-135M, MLP of layer 15, skip transcoder trained with Signum.",
        _rewriting(FINEWEB_EDU, SMOLLM2, SMOLLM2_TRANSCODER, 2_000),
        Published(
            source=LATER,
            latents=18_432,
            coder="TopK skip transcoder, k=128",
            training_tokens=1_000_000_000,
            activation_tokens=10_000_000,
            least_active=200,
            explainer=LLAMA_70B,
            explainer_examples=40,
            simulator=LLAMA_8B,
            contexts=2_000,
        ),
        REWRITING,
    ),
    "gemma-2-9b-sae": (
        "Gemma 2 9B, residual stream after layer 11, public JumpReLU SAE with 131k latents; k stands for its mean L0.",
        {
            "text": {"source": REDPAJAMA},
            "tokens": {"window": 256, "limits": {"calibrate": 1_000, "report": 1_000}},
            "subject": GEMMA,
            "coder": GEMMA_SAE,
            "activations": {"examples": 4},
            "lengths": (),
            "rungs": False,
            **ASKED,
            "evaluate": {"positions": ("last",)},
        },
        Published(
            source=BLOG,
            latents=131_072,
            coder="JumpReLU SAE, google/gemma-scope-9b-pt-res, layer 11, width 131k, mean L0 49",
            training_tokens=0,
            training_window=1024,
            activation_tokens=10_000_000,
            least_active=200,
            explainer=LLAMA_70B,
            explainer_examples=40,
            simulator=LLAMA_8B,
            contexts=1_000,
            asked=1_049,
        ),
        (),
    ),
    "gpt2-small-transcoders": (
        "GPT-2 small, a ReLU transcoder on every MLP, all of them replaced; the plan walks layer 8 of the sweep.",
        {
            "text": {"source": OPENWEBTEXT},
            "tokens": {"window": 128, "limits": {"report": 12_800}},
            "subject": GPT2,
            "lengths": (),
            "rungs": False,
            "coder": GPT2_TRANSCODERS,
            "layers": {"layers": tuple(range(12))},
            "measure": {"windows": 12_800},
        },
        _gpt2(coders=12),
        ("circuits",),
    ),
    "gpt2-small-sweep": (
        "GPT-2 small, ReLU transcoders of the MLP of layer 8 over eight weights of the penalty; for nlrewrite sweep.",
        {
            "text": {"source": OPENWEBTEXT},
            "tokens": {"window": 128, "limits": {"report": 12_800}},
            "subject": GPT2,
            "lengths": (),
            "rungs": False,
            "coder": {
                "site": {"kind": "mlp", "layer": 8},
                "width": 24_576,
                "skip": False,
                "steps": 60_000_000 // 4096,
                "batch": 4096,
                "learning_rate": 4e-4,
                "activation": "relu",
                "penalty": 8e-5,
                "loss": "relative",
                "init": "random",
                "unit_decoder": True,
                "warm_up": 5000,
                "decay": 0.0,
                "data": {**OPENWEBTEXT, "documents": 100_000_000, "first": 100_000, "tokens": 61_000_000},
                "window": 128,
            },
            "sweep": {"over": "penalty", "values": LAMBDAS},
        },
        _gpt2(coders=8),
        (),
    ),
}
