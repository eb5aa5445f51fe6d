"""HookedMLLM: any Hugging Face image-text-to-text model with TransformerLens hook points."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from pathlib import Path
from threading import RLock
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformers import AutoModelForImageTextToText, PreTrainedModel

from corelens.attention import tapped
from corelens.blocks import HookedBlock
from corelens.heads import Head
from corelens.inputs import Picture, PreparedInputs, load_processor, prepare
from corelens.sites import LayerSite, layer_sites

SHIPPED = {
    "corelens/toy": Path(__file__).parent / "toy" / "organism",
    "corelens/toy-natural": Path(__file__).parent / "toy" / "natural",
}
"""Models that come with the package and need no network."""

Hooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]
"""Pairs of a hook name, or a choice of names, and a function `(tensor, hook)`."""

Names = str | Sequence[str] | Callable[[str], bool] | None
"""One hook name, some, a choice of names, or None for all."""

# One pass at a time through a Hugging Face model, whoever wraps it: its attention is switched during hooked passes.
_LOCKS: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()


class HookedMLLM(HookedRootModule):
    """A Hugging Face image-text-to-text model with TransformerLens hook points on its decoder.

    Hook names are `blocks.{layer}.hook_{resid_pre,attn_out,resid_mid,mlp_out,resid_post}` and
    `blocks.{layer}.attn.hook_{q,k,v,attn_scores,pattern,z}`; `HookedAttention` says what each shows.

    Between passes, and in passes that nobody looks at, the Hugging Face model is untouched: it runs its own attention,
    bit for bit. While a hook looks at attention, the decoder runs fused (sdpa) attention through corelens's function.
    One pass runs at a time; `with model.hooks(...)` keeps other threads out until it ends.
    """

    def __init__(self, hf_model: nn.Module, processor: Any = None) -> None:
        """Wraps a loaded model. Nothing about it changes.

        Args:
            hf_model: The model, on any device and in any dtype.
            processor: Its processor, needed by `prepare` alone.

        Raises:
            TypeError: If it is compiled, takes no image tokens, or its decoder is not supported.
        """
        super().__init__()
        if hasattr(hf_model, "_orig_mod"):
            raise TypeError("the model is compiled; wrap it before torch.compile, since hooks need its Python code.")
        if not isinstance(hf_model, PreTrainedModel):
            raise TypeError(f"{type(hf_model).__name__} is not a Hugging Face model (transformers.PreTrainedModel).")
        sites = layer_sites(hf_model)
        # Past nn.Module's registration: TransformerLens names every submodule, and the model is not ours to name.
        self.__dict__["hf_model"] = hf_model
        self.processor = processor
        self.blocks = nn.ModuleList(HookedBlock(site) for site in sites)
        self.cfg = SimpleNamespace(
            model_name=hf_model.name_or_path or type(hf_model).__name__,
            n_layers=len(sites),
            n_heads=sites[0].n_heads,
            d_head=sites[0].d_head,
            d_model=sites[0].w_o.out_features,
        )
        self._attentions = {site.attention: block.attn for site, block in zip(sites, self._blocks, strict=True)}
        self._configs = list({id(site.config): site.config for site in sites}.values())
        self._queries: Bool[Tensor, "batch position"] | None = None
        self._lock = _LOCKS.setdefault(hf_model, RLock())
        self.setup()

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, trust_remote_code: bool = False, **kwargs: Any) -> "HookedMLLM":
        """Loads a model and its processor and wraps them.

        Args:
            name_or_path: A local folder, a Hub id, or a model that comes with corelens: `corelens/toy`,
                `corelens/toy-natural`.
            trust_remote_code: Whether Python code that comes with the checkpoint may run.
            kwargs: For Hugging Face's from_pretrained of the model, e.g. `dtype="bfloat16"`, `device_map="auto"`,
                `revision`.

        Raises:
            FileNotFoundError: If a local path does not exist.
            ValueError: If the checkpoint needs remote code and may not run it.
        """
        path = str(SHIPPED.get(name_or_path, name_or_path))
        if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
            raise FileNotFoundError(f"there is no model folder {path!r}.")
        path = str(Path(path).expanduser()) if path.startswith("~") else path
        shared = {
            name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs
        }
        try:
            # Safetensors only: other formats are pickles, which run code when they load.
            hf_model = AutoModelForImageTextToText.from_pretrained(
                path, trust_remote_code=trust_remote_code, use_safetensors=True, **kwargs
            )
            processor = load_processor(path, trust_remote_code=trust_remote_code, **shared)
        except ValueError as cause:
            if "trust_remote_code" not in str(cause):
                raise
            raise ValueError(
                f"{name_or_path!r} brings its own Python code. Read it; if you trust it, pass trust_remote_code=True."
            ) from cause
        return cls(hf_model.eval(), processor)

    # --- what it is ---

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every attention head of the decoder."""
        return tuple(Head(site.layer, head) for site in self._sites for head in range(site.n_heads))

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.hf_model.device

    @property
    def hf_model(self) -> PreTrainedModel:
        """The wrapped model itself."""
        return self.__dict__["hf_model"]

    @property
    def _blocks(self) -> list[HookedBlock]:
        return list(self.blocks)  # pyright: ignore[reportReturnType]

    @property
    def _sites(self) -> list[LayerSite]:
        return [block._site for block in self._blocks]

    def check_heads(self, heads: Iterable[Head]) -> None:
        """Raises a ValueError that names the first head that the model does not have."""
        existing = set(self.heads)
        for head in heads:
            if head not in existing:
                raise ValueError(
                    f"{head} does not exist: the model has {self.cfg.n_layers} layers of {self.cfg.n_heads} heads, "
                    f"counted from zero."
                )

    # nn.Module's own ways to move, switch and list reach the wrapped model, which is not in the module tree.

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "HookedMLLM":
        self.hf_model._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> "HookedMLLM":
        self.hf_model.train(mode)
        return super().train(mode)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.hf_model.named_parameters(*args, **kwargs)

    # --- inputs ---

    def prepare(
        self, images: Picture | Sequence[Any] | None = None, question: str | Sequence[Any] = ""
    ) -> PreparedInputs:
        """Tensors and token map for one question or a batch, through the model's own processor and chat template.

        Args:
            images: For one question a picture, a list of pictures or None; for a batch, a list with one such entry per
                question. A picture is a PIL image or a path. Pictures come before the question.
            question: A string, or a chat as a list of messages that ends with the user's; for a batch, a list of
                these. Chats place pictures by `{"type": "image"}` parts.

        Returns:
            The tensors as a mapping, left-padded, on the model's device and in its dtype, and as `.tokens` the map of
            their positions.

        Raises:
            ValueError: If a question is empty, pictures and questions do not match, or a picture is damaged or huge.
            FileNotFoundError: If a picture file is missing.
        """
        if self.processor is None:
            raise ValueError(
                "the model was wrapped without a processor: HookedMLLM(hf_model, processor) prepares inputs."
            )
        return prepare(self.processor, self.hf_model.config, images, question).to(self.device, self.hf_model.dtype)

    # --- passes ---

    def forward(
        self, inputs: Mapping[str, Any] | None = None, /, **tensors: Any
    ) -> Float[Tensor, "batch position vocabulary"] | Float[Tensor, ""]:
        """Logits of one pass, or the loss if `labels` are given.

        Args:
            inputs: What `prepare` returns, or any mapping of the tensors that the Hugging Face forward takes.
            tensors: More of them, or all of them.
        """
        tensors = {**(inputs or {}), **tensors}
        with self._listening(tensors):
            output = self.hf_model(**tensors)
        return output.logits if tensors.get("labels") is None else output.loss

    def generate(self, inputs: Mapping[str, Any] | None = None, /, **kwargs: Any) -> Int[Tensor, "batch position"]:
        """Hugging Face's `generate` under the present hooks, which act in prefill and in every decoding step.

        Args:
            inputs: What `prepare` returns, or any mapping of the tensors that the Hugging Face forward takes.
            kwargs: More tensors, and arguments of generate, e.g. `max_new_tokens`, `do_sample`.

        Returns:
            Prompt and continuation, as Hugging Face returns them.
        """
        kwargs = {**(inputs or {}), **kwargs}
        with self._listening(kwargs):
            # Hugging Face types generate for a mixin.
            return self.hf_model.generate(**kwargs)  # pyright: ignore[reportCallIssue]

    def answer(self, inputs: PreparedInputs, max_new_tokens: int = 32) -> list[str]:
        """The greedy answer to each prepared question, as text."""
        sequences = self.generate(inputs, max_new_tokens=max_new_tokens, do_sample=False)
        said = sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)]

    # --- hooks ---

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        queries: Bool[Tensor, "batch position"] | None = None,
    ) -> Iterator["HookedMLLM"]:
        """Adds hooks until the block ends; the block may hold passes, `generate` and further blocks.

        Args:
            fwd_hooks: Pairs of a hook name and a function `(tensor, hook)` that returns a replacement or None.
            bwd_hooks: The same for gradients.
            reset_hooks_end: Whether the hooks go at the end.
            clear_contexts: Whether the hook points' contexts are cleared with them.
            queries: Positions whose rows `attn_scores` and `pattern` show, instead of all: [batch head query key] with
                the chosen queries in order (`chosen_rows` says which rows are real when samples have different
                numbers of them). Edited rows are written back to `z`. In `generate` they are positions of the prompt.

        Raises:
            ValueError: If a hook point or an ablated head does not exist.
        """
        for name, function in (*fwd_hooks, *bwd_hooks):
            # What an intervention acts on is checked before what it is called, for the clearer message.
            self.check_heads(getattr(function, "heads", ()))
            self._check_names(name)
        hooked = super().hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts)
        with self._lock, self._limited_to(queries), hooked:
            yield self

    def run_with_hooks(
        self, *model_args: Any, queries: Bool[Tensor, "batch position"] | None = None, **kwargs: Any
    ) -> Any:
        """One pass with `fwd_hooks` and `bwd_hooks`, see `hooks`; returns what the pass returns."""
        with self._limited_to(queries):
            return super().run_with_hooks(*model_args, **kwargs)

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride] as TransformerLens's own models do
        self,
        *model_args: Any,
        queries: Bool[Tensor, "batch position"] | None = None,
        names_filter: Names = None,
        remove_batch_dim: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache]:
        """One pass and everything that its hook points showed.

        Without `queries` and `names_filter` this holds every pattern whole: heads x positions x positions per layer.

        Args:
            model_args: What `forward` takes.
            queries: Positions whose rows `attn_scores` and `pattern` hold, instead of all; see `hooks`.
            names_filter: Hook names to keep: one, a list, or a choice of names.
            remove_batch_dim: Whether to drop the batch axis of a batch of one.
            kwargs: Other arguments of TransformerLens's run_with_cache (`device`, `incl_bwd`, `pos_slice`), and
                tensors.

        Returns:
            What the pass returns, and a TransformerLens cache: `cache["pattern", 3]`.
        """
        if names_filter is not None and not callable(names_filter):
            for name in [names_filter] if isinstance(names_filter, str) else names_filter:
                self._check_names(name)
        if remove_batch_dim and (batch := _shape({**(model_args[0] if model_args else {}), **kwargs})[0]) != 1:
            raise ValueError(f"remove_batch_dim=True needs a batch of one, and this one has {batch} samples.")
        with self._lock, self._limited_to(queries):
            output, cache = super().run_with_cache(
                *model_args, names_filter=names_filter, remove_batch_dim=remove_batch_dim, **kwargs
            )
        return output, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    def add_hook(self, name: str | Callable[[str], bool], hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Adds a hook that stays until `reset_hooks`; see TransformerLens."""
        self._check_names(name)
        super().add_hook(name, hook, *args, **kwargs)

    # --- how ---

    def _check_names(self, name: str | Callable[[str], bool]) -> None:
        if isinstance(name, str) and name not in self.hook_dict:
            near = get_close_matches(name, self.hook_dict, n=3, cutoff=0)
            raise ValueError(f"there is no hook point {name!r}; the nearest are {', '.join(near)}.")

    @contextmanager
    def _limited_to(self, queries: Bool[Tensor, "batch position"] | None) -> Iterator[None]:
        if queries is None:
            yield
            return
        if queries.dtype != torch.bool or queries.ndim != 2:
            raise ValueError(
                f"queries must be boolean and [batch position], and these are {queries.dtype} of shape "
                f"{tuple(queries.shape)}; token maps have such masks, e.g. inputs.tokens.question."
            )
        with self._lock:
            before, self._queries = self._queries, queries.to(self.device)
            try:
                yield
            finally:
                self._queries = before

    @contextmanager
    def _listening(self, tensors: Mapping[str, Any]) -> Iterator[None]:
        """Connects every hook point that has hooks to the Hugging Face model until the block ends."""
        with self._lock, ExitStack() as connected:
            if self._queries is not None and (shape := _shape(tensors)) != tuple(self._queries.shape):
                raise ValueError(
                    f"queries has shape {tuple(self._queries.shape)}, and the inputs have (batch, position) = {shape}."
                )
            if any(point.has_hooks() for point in self.hook_points()):
                if self.hf_model._compiled_call_impl is not None:
                    raise RuntimeError(
                        "the model is compiled, and hooks need its Python code: load it anew to hook it."
                    )
                for block in self._blocks:
                    connected.enter_context(block.listening())
                taps = {
                    module: attention.tap(self._queries)
                    for module, attention in self._attentions.items()
                    if any(point.has_hooks() for point in attention.children() if isinstance(point, HookPoint))
                }
                if taps:
                    connected.enter_context(tapped(taps, self._configs))
            yield


def _shape(tensors: Mapping[str, Any]) -> tuple[int, int]:
    """Batch and number of positions of the sequence, cached positions included."""
    given = tensors.get("input_ids")
    given = tensors.get("inputs_embeds") if given is None else given
    if given is None:
        raise ValueError("the inputs hold neither `input_ids` nor `inputs_embeds`.")
    past = tensors.get("past_key_values")
    return given.shape[0], given.shape[1] + (past.get_seq_length() if past is not None else 0)
