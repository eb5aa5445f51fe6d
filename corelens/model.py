"""HookedMLLM: any Hugging Face image-text-to-text model with TransformerLens hook points."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import RLock
from types import SimpleNamespace
from typing import Any, Literal, overload
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformers import PreTrainedModel

from corelens.errors import docs_link
from corelens.heads import Head
from corelens.hf.architecture import KNOWN_BUGS, DecoderLayer, decoder_layers, final_norm, vision_layers
from corelens.hf.loading import load_model
from corelens.hf.prefix_cache import PrefixCache, check_prefix_is_exact, compute_prefix, length_before_question
from corelens.hooks.connect import attention_function_names, clear_context, hook_functions, track_positions
from corelens.hooks.points import HookedAttention, HookedBlock, HookedVision, check_heads, check_hook_name
from corelens.hooks.positions import Intervention, PassState, PositionSelector, batch_shape
from corelens.hooks.rows import RowHook
from corelens.hooks.taps import route_attention
from corelens.inputs.media import Footage, Picture
from corelens.inputs.prepare import PreparedInputs, prepare, repeat_inputs, unknown_words
from corelens.tokens import TokenMap

Hooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]
"""Pairs of a hook name, or a choice of names, and a function `(tensor, hook)`."""

Names = str | Sequence[str] | Callable[[str], bool] | None
"""One hook name, some, a choice of names, or None for all."""

LOCKS: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()
"""One pass at a time through a Hugging Face model, whoever wraps it: its attention is switched meanwhile."""


class HookedMLLM(HookedRootModule):
    """A Hugging Face image-text-to-text model with TransformerLens hook points.

    Hook names are `blocks.{layer}.hook_{resid_pre,attn_out,resid_mid,mlp_out,resid_post}` and
    `blocks.{layer}.attn.hook_{q,k,v,attn_scores,pattern,z,o_in}` for the decoder, `blocks.{layer}.cross_attn.hook_*`
    where a layer attends to an encoder beside itself, and `vision.blocks.{layer}.attn.hook_*` for the vision tower;
    `HookedAttention` says what each shows. Layers keep their absolute numbers, and a layer has the hook points that
    make sense for it: one of linear attention, say, has no `attn`.

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
            TypeError: If it is compiled, takes no pictures, or computes its text attention in a way that cannot be
                hooked.

        Warns:
            UserWarning: If a known fault of transformers changes what is measured on this type of model.
        """
        super().__init__()
        if hasattr(hf_model, "_orig_mod"):
            raise TypeError(
                f"the model is compiled; wrap it before torch.compile, since hooks need its Python code. "
                f"{docs_link('compiled')}"
            )
        if not isinstance(hf_model, PreTrainedModel):
            raise TypeError(f"{type(hf_model).__name__} is not a Hugging Face model (transformers.PreTrainedModel).")
        sites = decoder_layers(hf_model)
        vision, self._no_vision = vision_layers(hf_model, sites)
        if bug := KNOWN_BUGS.get(hf_model.config.model_type):
            warnings.warn(bug, stacklevel=2)
        # Past nn.Module's registration: TransformerLens names every submodule, and the model is not ours to name.
        self.__dict__["hf_model"] = hf_model
        self.processor = processor
        self.blocks = nn.ModuleList(HookedBlock(site) for site in sites)
        self.vision = HookedVision(vision)
        attentions = [site.attentions["attn"] for site in sites if "attn" in site.attentions]
        self.cfg = SimpleNamespace(
            model_name=hf_model.name_or_path or type(hf_model).__name__,
            n_layers=len(sites),
            # The largest, where layers differ.
            n_heads=max(attention.n_heads for attention in attentions),
            d_head=max(attention.d_head for attention in attentions),
            d_model=attentions[0].d_model,
            # TransformerLens's patching and caches read these as well.
            n_key_value_heads=max(attention.n_kv_heads for attention in attentions),
            device=hf_model.device,
            dtype=hf_model.dtype,
            attn_only=False,
            normalization_type="RMS" if "RMS" in type(final_norm(sites[0].stack)).__name__ else "LN",
        )
        self._queries: PositionSelector | None = None
        self._continuing: set[frozenset[str]] = set()
        """The kinds of inputs for which passes after a prefix were seen to be whole passes."""
        self._lock = LOCKS.setdefault(hf_model, RLock())
        self.setup()
        super().train(hf_model.training)

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, trust_remote_code: bool = False, **kwargs: Any) -> "HookedMLLM":
        """Loads a model and its processor and wraps them.

        Args:
            name_or_path: A local folder, a Hub id, or a model that comes with corelens, such as `corelens/toy`;
                docs/models.md lists them.
            trust_remote_code: Whether Python code that comes with the checkpoint may run.
            kwargs: For Hugging Face's from_pretrained of the model, e.g. `dtype="bfloat16"`, `device_map="auto"`,
                `revision`.

        Raises:
            FileNotFoundError: If a local path does not exist or holds no model.
            ValueError: If the checkpoint needs remote code and may not run it, or a dtype or device is not known.
        """
        hf_model, processor = load_model(name_or_path, trust_remote_code, **kwargs)
        model = cls(hf_model, processor)
        # As it was asked for: results of a shipped model do not depend on where corelens is installed.
        model.cfg.model_name = str(name_or_path)
        return model

    # --- what it is ---

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every attention head of the decoder: those of `blocks.{layer}.attn`."""
        return tuple(
            Head(site.layer, head)
            for site in self._sites
            if "attn" in site.attentions
            for head in range(site.attentions["attn"].n_heads)
        )

    def attn_names(self, point: str) -> list[str]:
        """The names of an attention hook point, e.g. `pattern`, in every decoder layer that has heads, in order."""
        layers = [site.layer for site in self._sites if "attn" in site.attentions]
        return [f"blocks.{layer}.attn.hook_{point}" for layer in layers]

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
    def _sites(self) -> list[DecoderLayer]:
        return [block._site for block in self._blocks]

    def check_heads(self, heads: Iterable[Head]) -> None:
        """Raises a ValueError that names the first head that the model does not have."""
        check_heads(heads, self._sites)

    # What TransformerLens's logit lens reads of a model.

    @property
    def ln_final(self) -> nn.Module:
        """The norm between the last layer and the logits."""
        norm = final_norm(self._sites[0].stack)
        if norm is None:
            raise ValueError(f"which norm {type(self._sites[0].stack).__name__} ends with is not known.")
        return norm

    @property
    def unembed(self) -> nn.Module | None:
        """What makes logits of the normed residual stream, if it is one module."""
        return self.hf_model.get_output_embeddings()

    @property
    def W_U(self) -> Float[Tensor, "d_model vocabulary"]:
        """Its weights: along each column, what raises the logit of that token.

        Raises:
            ValueError: If the model has no such matrix.
        """
        # Any: pyright sees no attributes of a module.
        unembed: Any = self.unembed
        if unembed is None:
            raise ValueError(f"{type(self.hf_model).__name__} has no unembedding, so no token has a direction.")
        return unembed.weight.T

    @property
    def b_U(self) -> Float[Tensor, "#vocabulary"]:
        """Its biases; a single zero if it has none."""
        bias = getattr(self.unembed, "bias", None)
        return self.W_U.new_zeros(1) if bias is None else bias

    # nn.Module's own ways to move, switch and list reach the wrapped model, which is not in the module tree.

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "HookedMLLM":
        self.hf_model._apply(fn, recurse)
        self.cfg.device, self.cfg.dtype = self.device, self.hf_model.dtype
        return self

    def train(self, mode: bool = True) -> "HookedMLLM":
        self.hf_model.train(mode)
        return super().train(mode)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.hf_model.named_parameters(*args, **kwargs)

    # --- inputs ---

    def prepare(
        self,
        images: Picture | Sequence[Any] | None = None,
        question: str | Sequence[Any] = "",
        videos: Footage | Sequence[Any] | None = None,
    ) -> PreparedInputs:
        """Tensors and token map for one question or a batch, through the model's own processor and chat template.

        Args:
            images: For one question a picture, a list of pictures or None; for a batch, a list with one such entry per
                question. A picture is a PIL image, a path, or a function that returns a PIL image. Pictures come
                before the question.
            question: A string, or a chat as a list of messages that ends with the user's; for a batch, a list of
                these. Chats place pictures by `{"type": "image"}` parts and videos by `{"type": "video"}` parts.
            videos: As `images`. A video is `corelens.Video(frames, fps)`, or the path of a file if torchcodec or PyAV
                is installed. Videos come after pictures, before the question. The processor samples frames as its
                settings say (`processor.video_processor.fps` and others). A token's `seconds` last from its first
                sampled frame until the first of the next view, those of the last view until the video ends. Needs
                torchvision: `pip install 'corelens[video]'`.

        Returns:
            The tensors as a mapping, left-padded, on the model's device and in its dtype, and as `.tokens` the map of
            their positions.

        Raises:
            ValueError: If a question is empty, media and questions do not match, a picture is damaged or huge, or a
                video cannot be sampled.
            FileNotFoundError: If the file of a picture or video is missing.
            ImportError: If videos need a package that is not installed.
        """
        if self.processor is None:
            raise ValueError(
                f"the model was wrapped without a processor: HookedMLLM(hf_model, processor) prepares inputs. "
                f"{docs_link('no-processor')}"
            )
        prepared = prepare(self.processor, self.hf_model.config, images, question, videos)
        if note := unknown_words(self.processor.tokenizer, prepared):
            warnings.warn(note, stacklevel=2)
        return prepared.to(self.device, self.hf_model.dtype)

    # --- passes ---

    def forward(
        self,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        prefix: PrefixCache | None = None,
        times: int = 1,
        **tensors: Any,
    ) -> Float[Tensor, "batch position vocabulary"] | Float[Tensor, ""]:
        """Logits of one pass, or the loss if `labels` are given.

        Args:
            inputs: What `prepare` returns, or any mapping of the tensors that the Hugging Face forward takes.
            prefix: What `model.prefix` computed of these inputs, or of others that begin alike. Only the positions
                after it run, and logits are theirs.
            times: How often every sample stands in the batch, one copy after another, so that hooks may do something
                else to each. Without a prefix for a batch of one only.
            tensors: More of them, or all of them.

        Raises:
            ValueError: If the inputs do not begin as the prefix does, another model made it, or several samples are to
                be repeated without a prefix.
        """
        tensors = {**_mapping(inputs), **tensors}
        progress = self._beginning(tensors, getattr(inputs, "tokens", None), prefix)
        with self._listening(progress):
            if prefix is not None:
                tensors = prefix.suffix_inputs(tensors, times)
            elif times != 1:
                tensors = repeat_inputs(tensors, times)
            output = self.hf_model(**tensors)
        return output.logits if tensors.get("labels") is None else output.loss

    @overload
    def prefix(
        self, inputs: Mapping[str, Any], until: int | None = None, *, required: Literal[True] = True
    ) -> PrefixCache: ...

    @overload
    def prefix(self, inputs: Mapping[str, Any], until: int | None = None, *, required: bool) -> PrefixCache | None: ...

    def prefix(
        self, inputs: Mapping[str, Any], until: int | None = None, *, required: bool = True
    ) -> PrefixCache | None:
        """Computes what comes before the question once, for any number of passes, questions and interventions after it.

        Exact: `model(inputs, prefix=prefix)` gives the last of the logits of `model(inputs)`. Interventions that act
        before the question are refused in such passes, unless they acted here already. The first prefix of each kind of
        inputs is checked against a whole pass, which costs two passes more.

        Args:
            inputs: What `prepare` returns, or any mapping of the tensors that the Hugging Face forward takes.
            until: How many positions, padding included; None for all before the first question of the batch. Pictures
                and videos have to be among them.
            required: False to return None, rather than raise a ValueError, if there is no prefix to share.

        Raises:
            ValueError: If nothing comes before the question, a picture comes after it, or the model does not compute
                the same after a prefix as in a whole pass: its decoder attends to an encoder, say, or its prompts look
                ahead.
        """
        try:
            return self._compute_prefix(inputs, until)
        except ValueError:
            if required:
                raise
            return None

    @torch.no_grad()
    def _compute_prefix(self, inputs: Mapping[str, Any], until: int | None) -> PrefixCache:
        if until is None:
            if (tokens := getattr(inputs, "tokens", None)) is None:
                raise ValueError("these inputs have no token map: say how many positions, prefix(inputs, until).")
            until = length_before_question(tokens)
        if any(site.is_cross_attention for layer in self._sites for site in layer.attentions.values()):
            raise ValueError(f"{type(self.hf_model).__name__} attends to an encoder: its prompts have no prefix.")
        stack = self._sites[0].stack
        if frozenset(inputs) not in self._continuing:
            with self._lock:
                check_prefix_is_exact(self.hf_model, stack, inputs, until)
            self._continuing.add(frozenset(inputs))
        with self._listening(self._beginning(inputs, getattr(inputs, "tokens", None))):
            return compute_prefix(self.hf_model, stack, inputs, until, tuple(hook_functions(self.hook_points())))

    def generate(
        self, inputs: Mapping[str, Any] | None = None, /, *, prefix: PrefixCache | None = None, **kwargs: Any
    ) -> Any:
        """Hugging Face's `generate` under the present hooks, which act in prefill and in every decoding step.

        Args:
            inputs: What `prepare` returns, or any mapping of the tensors that the Hugging Face forward takes.
            prefix: What `model.prefix` computed of these inputs, or of others that begin alike.
            kwargs: More tensors, and arguments of generate, e.g. `max_new_tokens`, `do_sample`.

        Returns:
            Prompt and continuation, [batch position], or what else Hugging Face returns if asked to.
        """
        kwargs = {**_mapping(inputs), **kwargs}
        progress = self._beginning(kwargs, getattr(inputs, "tokens", None), prefix)
        if any(point.has_hooks() for point in self.hook_points()):
            # With a static cache on a GPU it would compile the model, and hooks need its Python code.
            kwargs = {"disable_compile": True} | kwargs
        with self._listening(progress):
            if prefix is not None:
                settings = {name: value for name, value in kwargs.items() if name not in (inputs or {})}
                kwargs = settings | prefix.generate_inputs(inputs or {}, settings)
            # Hugging Face types generate for a mixin.
            return self.hf_model.generate(**kwargs)  # pyright: ignore[reportCallIssue]

    def answer(self, inputs: PreparedInputs, max_new_tokens: int = 32, prefix: PrefixCache | None = None) -> list[str]:
        """The greedy answer to each prepared question, as text."""
        sequences = self.generate(inputs, prefix=prefix, max_new_tokens=max_new_tokens, do_sample=False)
        # Decoders beside an encoder return only what they said.
        prompt = 0 if self.hf_model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        said = sequences[:, prompt:]
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
            queries: Positions whose rows `attn_scores` and `pattern` show to these functions, instead of all: [batch
                head query key] with the chosen queries in order (`row_mask` says which rows are real when samples
                have different numbers of them). Edited rows are written back to `z`. In `generate` they are positions
                of the prompt. A function that says itself `where` it looks, as interventions do, sees those rows.

        Raises:
            ValueError: If a hook point or an ablated head does not exist.
        """
        for name, function in (*fwd_hooks, *bwd_hooks):
            # What an intervention acts on is checked before what it is called, for the clearer message.
            self.check_heads(getattr(function, "heads", ()))
            self._check_names(name)
        with self._lock, self._limited_to(queries):
            fwd = [(name, self._at_rows(name, function)) for name, function in fwd_hooks]
            bwd = [(name, self._at_rows(name, function)) for name, function in bwd_hooks]
            with super().hooks(fwd, bwd, reset_hooks_end, clear_contexts):
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

        Without `queries` and `names_filter` this holds every pattern of the decoder whole: heads x positions x
        positions per layer. The vision tower's hook points are kept only if `names_filter` chooses them.

        Args:
            model_args: What `forward` takes.
            queries: Positions whose rows `attn_scores` and `pattern` hold, instead of all; see `hooks`.
            names_filter: Hook names to keep: one, a list, or a choice of names; None for all of the decoder.
            remove_batch_dim: Whether to drop the batch axis of a batch of one.
            kwargs: Other arguments of TransformerLens's run_with_cache (`device`, `incl_bwd`, `pos_slice`), and
                tensors.

        Returns:
            What the pass returns, and a TransformerLens cache: `cache["pattern", 3]`.
        """
        if isinstance(names_filter, str):
            names_filter = [names_filter]
        if names_filter is not None and not callable(names_filter):
            for name in names_filter:
                self._check_names(name)
        if remove_batch_dim and (batch := batch_shape({**_mapping(*model_args[:1]), **kwargs})[0]) != 1:
            raise ValueError(f"remove_batch_dim=True needs a batch of one, and this one has {batch} samples.")
        if names_filter is None:
            names_filter = [name for name in self.hook_dict if not name.startswith("vision.")]
        wanted = names_filter if callable(names_filter) else list(names_filter).__contains__
        if kwargs.get("pos_slice") is not None and any(wanted(n) for n in self.hook_dict if n.endswith("hook_o_in")):
            raise ValueError(
                "pos_slice takes the head axis of hook_o_in for positions: leave hook_o_in out with names_filter, or "
                "slice what the cache holds."
            )
        with self._lock, self._limited_to(queries):
            output, cache = super().run_with_cache(
                *model_args, names_filter=names_filter, remove_batch_dim=remove_batch_dim, **kwargs
            )
        return output, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    def add_hook(self, name: str | Callable[[str], bool], hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Adds a hook that stays until `reset_hooks`; see TransformerLens."""
        self._check_names(name)
        super().add_hook(name, self._at_rows(name, hook), *args, **kwargs)

    # --- how ---

    def _at_rows(self, name: str | Callable[[str], bool], function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which will see the rows chosen where it was added, whoever asks for others."""
        if isinstance(name, str) and not name.endswith((".hook_attn_scores", ".hook_pattern")):
            return function
        where = getattr(function, "where", None) or self._queries
        return function if where is None else RowHook(function, where)

    def _check_names(self, name: str | Callable[[str], bool]) -> None:
        if isinstance(name, str):
            check_hook_name(name, self.hook_dict, self._sites, self._no_vision)

    @contextmanager
    def _limited_to(self, queries: Bool[Tensor, "batch position"] | None) -> Iterator[None]:
        if queries is None:
            yield
            return
        with self._lock:
            before, self._queries = self._queries, PositionSelector(queries, "prefill")
            try:
                yield
            finally:
                self._queries = before

    @contextmanager
    def _listening(self, progress: PassState) -> Iterator[None]:
        """Connects every hook point that has hooks to the Hugging Face model until the block ends."""
        with self._lock, ExitStack() as connected:
            if self._queries is not None and self._queries.prompt is not None:
                progress.mask(self._queries.prompt, "queries")
            if hooked := [point for point in self.hook_points() if point.has_hooks()]:
                if self.hf_model._compiled_call_impl is not None:
                    raise RuntimeError(
                        f"the model is compiled, and hooks need its Python code: load it anew to hook it. "
                        f"{docs_link('compiled')}"
                    )
                for function in hook_functions(hooked):
                    if isinstance(function, Intervention):
                        function.check(replace(progress, n_cached=0) if function in progress.prefix_hooks else progress)
                for point in hooked:
                    point.ctx["progress"] = progress
                    connected.callback(clear_context, point)
                connected.callback(track_positions(self._sites[0].stack, progress).remove)
                for block in self._blocks:
                    connected.enter_context(block.connected())
                for attention in self.modules():
                    if isinstance(attention, HookedAttention):
                        connected.enter_context(attention.connected())
                taps = {
                    attention._site: attention.tap(progress, rows_of_all=not decoder)
                    for part, decoder in ((self.blocks, True), (self.vision, False))
                    for attention in part.modules()
                    if isinstance(attention, HookedAttention) and attention.has_hooks
                }
                if taps:
                    names = attention_function_names(self.hf_model, taps)
                    connected.enter_context(route_attention({site.module: tap for site, tap in taps.items()}, names))
            yield

    def _beginning(
        self, tensors: Mapping[str, Any], tokens: TokenMap | None, prefix: PrefixCache | None = None
    ) -> PassState:
        """Where a pass or a generation begins."""
        n_samples, n_prompt = batch_shape(tensors)
        if self.hf_model.config.is_encoder_decoder and "decoder_input_ids" not in tensors:
            n_prompt = 1
        past = tensors.get("past_key_values")
        first = 0 if past is None else int(past.get_seq_length())
        if prefix is not None:
            prefix.check(self.hf_model, tensors)
            first = prefix.length
        crossing = frozenset(
            s.layer for s in self._sites if "attn" in s.attentions and s.attentions["attn"].is_cross_attention
        )
        functions = () if prefix is None else prefix.hooks
        return PassState(n_samples, n_prompt, tokens, first, n_prompt - first, crossing, functions)


def _mapping(inputs: Any = None) -> Mapping[str, Any]:
    """Tensors by name, which a question or a picture is not yet."""
    if inputs is not None and not isinstance(inputs, Mapping):
        raise TypeError(f"a {type(inputs).__name__} is no input; give what model.prepare(pictures, question) returns.")
    return inputs or {}
