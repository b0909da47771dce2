"""Where and how results are computed. Nothing here may change what a result is called.

Specs (`specs.py`) identify a result; `Execution` holds the rest: places, devices, threads, batch sizes.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Execution(BaseModel):
    """Where and how to compute; never part of an artifact's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(default="store", description="Artifact store: a local folder, or s3://bucket/prefix.")
    runs: str = Field(
        default="runs", description="Folder that receives results.json and report.html, one folder a profile."
    )
    threads: int = Field(default=1, ge=1, le=256, description="Compute threads of torch and of BLAS.")
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="Torch device of the language model that is asked and of the coder's training; all else runs on "
        "the CPU.",
    )
    fast_products: bool = Field(
        default=True,
        description="Train coders on the CPU with the faster of torch's two libraries, where it is as exact.",
    )
    batch_tokens: int = Field(
        default=8192, ge=64, le=1 << 22, description="Tokens in one forward pass of the subject model."
    )
    scratch: str | None = Field(default=None, description="Local folder for files fetched from a remote store.")
    text_folder: str | None = Field(default=None, description="Folder of text files, when text.source.kind is folder.")
    subject_folder: str | None = Field(default=None, description="Local model folder, when subject.kind is folder.")
    reader_folder: str | None = Field(default=None, description="Local model folder, when reader.kind is folder.")
    coder_folder: str | None = Field(
        default=None, description="Local folder or file with a coder, when coder.kind is folder."
    )
    stream_folder: str | None = Field(
        default=None, description="Folder of text files to train the coder on, when coder.data.kind is folder."
    )
    token_rows: str | None = Field(
        default=None, description="File of token ids to train the coder on, when coder.data.kind is rows."
    )
    save_seconds: float = Field(
        default=300.0, gt=0, le=86_400, description="Seconds between saves of training that goes on after a kill."
    )
    template_folder: str | None = Field(default=None, description="Folder of prompt templates of your own.")
    engine: Literal["auto", "packed", "reference", "vllm", "server"] = Field(
        default="auto",
        description="What runs the language model that is asked; auto: a served model by server, else packed for "
        "digits, and for text vllm where it is installed beside a GPU.",
    )
    engine_tokens: int = Field(
        default=2048, ge=16, le=1 << 22, description="Tokens that an engine takes through the model at a time."
    )
    endpoint: str | None = Field(
        default=None, description="Base URL of an OpenAI-compatible server; its key is in NLREWRITE_API_KEY."
    )
    endpoint_model: str | None = Field(
        default=None, description="Name the endpoint knows the model by, where that is not the reader's own."
    )
    concurrency: int = Field(default=8, ge=1, le=4096, description="Requests to the endpoint at the same time.")
    prices: tuple[str, ...] = Field(
        default=(), description="What the endpoint's provider asks per million tokens: prompt=2.5, new=10."
    )
    spend: float | None = Field(
        default=None, gt=0, description="Most money to spend at the endpoint, in the currency of the prices."
    )
    request_timeout: float = Field(default=120.0, gt=0, le=86_400, description="Seconds a request may take.")
    request_tries: int = Field(default=5, ge=1, le=100, description="Times a request is tried before it has failed.")

    @property
    def subject_device(self) -> str:
        """Torch device of the subject outside of training a coder: the CPU alone, in this version."""
        return "cpu"
