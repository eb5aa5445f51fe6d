"""HookedMLLM: a Hugging Face image-text-to-text model with TransformerLens hook points.

    model = HookedMLLM.from_pretrained(name)             hf/loading, hf/architecture
    inputs = model.prepare(picture, question)            inputs/: tensors and a TokenMap of their positions
    logits, cache = model.run_with_cache(inputs, queries=inputs.tokens.last)

        cache["pattern", layer]     [batch head row key], a row for every position in `queries`
        cache["z", layer]           [batch position head d_head]
        cache["resid_post", layer]  [batch position d_model]

Each pass computes its state (`hooks/positions.PassState`), connects the hook points that have hooks to the Hugging Face
model (`hooks/connect.connected`), runs the model's own forward, and disconnects them. Attention arithmetic is in
`hooks/attention`, the row limits of `queries` in `hooks/rows`, prefixes in `hf/prefix_cache`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache

from corelens.errors import docs_link
from corelens.heads import Head
from corelens.hf.architecture import KNOWN_BUGS
from corelens.hf.config import HookedMLLMConfig
from corelens.hf.forward import (
    Output,
    ReturnType,
    argument_names,
    asks_for_attentions,
    check_arguments,
    check_generate_arguments,
    check_prefix_arguments,
    check_return_type,
    check_text_ids,
    input_mapping,
    layer_to_stop_at,
    run_until,
    select_output,
)
from corelens.hf.loading import load_model
from corelens.hf.prefix_cache import PrefixCache, check_prefix_is_exact, compute_prefix, prefix_length
from corelens.hooks.cache import MLLMCache
from corelens.hooks.connect import hook_functions
from corelens.hooks.points import NamesFilter
from corelens.hooks.positions import batch_shape
from corelens.hooks.refused import RefusedNames
from corelens.hooks.rows import Hooks, limit_rows
from corelens.hooks.stacked_weights import StackedWeights
from corelens.hooks.threads import pass_through_corelens
from corelens.inputs.media import Footage, Picture
from corelens.inputs.prepare import PreparedInputs, prepare, unknown_words
from corelens.inputs.text import TextTools


class HookedMLLM(RefusedNames, TextTools, StackedWeights):
    """A Hugging Face image-text-to-text model with TransformerLens hook points.

    `corelens.hooks.points` lists the hook names, and `HookedAttention` gives the shape of each. Layers keep their
    absolute numbers, and a layer has the hook points that make sense for it: one of linear attention has no `attn`.

    Between passes, and in passes without hooks, the Hugging Face model is untouched: it runs its own attention, bit for
    bit. While there is a hook on attention, the decoder runs fused (sdpa) attention through corelens's function. One
    pass runs at a time; `with model.hooks(...)` keeps other threads out until it ends.
    """

    def __init__(self, hf_model: nn.Module, processor: Any = None) -> None:
        """Wrap a loaded model, which is not changed.

        Args:
            hf_model: The model, on any device and in any dtype.
            processor: Its processor, needed by `prepare` and `answer` only.

        Raises:
            TypeError: If the model is compiled, takes no pictures, or computes its text attention in a way that cannot
                be hooked.

        Warns:
            UserWarning: If a known fault of transformers changes what is measured on this type of model.
        """
        super().__init__(hf_model)
        if bug := KNOWN_BUGS.get(self.hf_model.config.model_type):
            warnings.warn(bug, stacklevel=2)
        self.processor = processor
        self.cfg = HookedMLLMConfig.of(self.hf_model, self.hf_layers)
        self._exact_prefixes: set[frozenset[str]] = set()
        """Names of the tensors of inputs for which passes after a prefix were found to equal whole passes."""
        super().train(self.hf_model.training)

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, trust_remote_code: bool = False, **kwargs: Any) -> "HookedMLLM":
        """Load a model and its processor, and wrap them.

        Args:
            name_or_path: A local folder, a Hub id, or a model that comes with corelens, such as `corelens/toy`;
                docs/models.md lists them.
            trust_remote_code: Run Python code that comes with the checkpoint.
            kwargs: For Hugging Face's from_pretrained of the model, e.g. `dtype="bfloat16"`, `device_map="auto"`,
                `revision`.

        Raises:
            FileNotFoundError: If a local path does not exist or holds no model.
            ValueError: If the checkpoint needs remote code and may not run it, or a dtype or device is not known.
        """
        hf_model, processor = load_model(name_or_path, trust_remote_code, **kwargs)
        model = cls(hf_model, processor)
        # The name that was passed, so that results of a shipped model do not depend on where corelens is installed.
        model.cfg.model_name = str(name_or_path)
        return model

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and what is pickled, wrap a copy of the Hugging Face model."""
        if any(point.has_hooks() for point in self.hook_points()):
            raise ValueError("a model with hooks cannot be copied: copy it without, and add them to the copy.")
        return type(self), (self.hf_model, self.processor), {"cfg": self.cfg}

    @property
    def heads(self) -> tuple[Head, ...]:
        """All attention heads of the decoder, those of `blocks.{layer}.attn`."""
        return tuple(
            Head(layer.layer, head)
            for layer in self.hf_layers
            if "attn" in layer.attentions
            for head in range(layer.attentions["attn"].n_heads)
        )

    def attn_names(self, point: str) -> list[str]:
        """Names of an attention hook point, e.g. `pattern`, in all decoder layers that have heads, in order."""
        return [f"blocks.{layer.layer}.attn.hook_{point}" for layer in self.hf_layers if "attn" in layer.attentions]

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.hf_model.device

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "HookedMLLM":
        self.hf_model._apply(fn, recurse)
        self.cfg.device, self.cfg.dtype = self.device, self.hf_model.dtype
        return self

    def train(self, mode: bool = True) -> "HookedMLLM":
        self.hf_model.train(mode)
        return super().train(mode)

    def prepare(
        self,
        images: Picture | Sequence[Any] | None = None,
        question: str | Sequence[Any] = "",
        videos: Footage | Sequence[Any] | None = None,
    ) -> PreparedInputs:
        """Tensors and token map of one question or a batch, through the model's own processor and chat template.

        Args:
            images: For one question a picture, a list of pictures or None; for a batch, a list with one such entry per
                question. A picture is a PIL image, a path, or a function that returns a PIL image. Pictures come
                before the question.
            question: A string, or a chat as a list of messages that ends with the user's; for a batch, a list of
                these. Chats place media by `{"type": "image"}` and `{"type": "video"}` parts. The question is the
                last text, or what a part marks: `{"type": "text", "text": "Q: Why? Be brief.", "question": "Why?"}`.
            videos: As `images`. A video is `corelens.Video(frames, fps)`, or the path of a file if torchcodec or PyAV
                is installed. Videos come after pictures, before the question. The processor samples frames by its
                own settings (`processor.video_processor.fps` and others). A token's `seconds` last until the first
                sampled frame of the next view, or the video's end. Needs `pip install 'corelens[video]'`.

        Returns:
            The tensors as a mapping, left-padded, on the model's device and in its dtype, and as `.tokens` the map of
            their positions.

        Raises:
            ValueError: If a question is empty or not in its prompt, media and questions do not match, a picture is
                damaged or huge, or a video cannot be sampled.
            FileNotFoundError: If the file of a picture or video is missing.
            ImportError: If videos need a package that is not installed.
        """
        if self.processor is None:
            raise ValueError(
                f"the model was wrapped without a processor: HookedMLLM(hf_model, processor) prepares inputs. "
                f"{docs_link('no-processor')}"
            )
        inputs = prepare(self.processor, self.hf_model.config, images, question, videos)
        if warning := unknown_words(self.processor.tokenizer, inputs):
            warnings.warn(warning, stacklevel=2)
        return inputs.to(self.device, self.hf_model.dtype)

    def forward(
        self,
        inputs: Mapping[str, Any] | Int[Tensor, "batch position"] | None = None,
        /,
        *,
        prefix: PrefixCache | None = None,
        return_type: ReturnType = "auto",
        stop_at_layer: int | None = None,
        **tensors: Any,
    ) -> Output:
        """Logits of one pass, or the loss if `labels` are given.

        Args:
            inputs: Result of `prepare`, or any mapping of the tensors that the Hugging Face forward takes; or ids of
                text without pictures.
            prefix: Result of `model.prefix` for these inputs, or for others that begin alike. Only the positions after
                it are computed, and the logits are theirs.
            return_type: `logits`, `loss`, `both` or None, as in TransformerLens. Without `labels` the loss is its mean
                over all tokens but the first, placeholders of pictures among them. `auto` is the loss if there are
                `labels`, else the logits.
            stop_at_layer: Return the residual stream that enters this layer, from zero or, negative, from the end;
                that layer and those after it do not run.
            tensors: More tensors, or all of them.

        Raises:
            TypeError: If the Hugging Face forward does not take an argument.
            ValueError: If the inputs do not begin as the prefix does, or another model made it; or if a hook is in a
                layer that does not run.
        """
        # Processors may make more than a model reads.
        by_hand = {} if isinstance(inputs, PreparedInputs) else input_mapping(inputs)
        check_arguments({**by_hand, **tensors}, self._arguments)
        check_return_type(return_type)
        tensors = {**self._tensors(inputs), **tensors}
        if prefix is not None:
            check_prefix_arguments(tensors, return_type)
        if stop_at_layer is not None:
            stop_at_layer = layer_to_stop_at(stop_at_layer, len(self.blocks), tensors, return_type)
            self._check_reached(stop_at_layer)
        with self.connected(tensors, getattr(inputs, "tokens", None), prefix):
            arguments = tensors if prefix is None else prefix.suffix_inputs(tensors)
            if stop_at_layer is not None:
                return run_until(self.hf_model, self.hf_layers[stop_at_layer].block, arguments)
            output = self.hf_model(**arguments)
        return select_output(output, tensors, return_type)

    def _tensors(self, inputs: Any) -> Mapping[str, Any]:
        check_text_ids(inputs, self.hf_model, getattr(getattr(self.processor, "tokenizer", None), "pad_token_id", None))
        return input_mapping(inputs)

    @cached_property
    def _arguments(self) -> frozenset[str]:
        return argument_names(self.hf_model)

    @torch.no_grad()
    def prefix(self, inputs: Mapping[str, Any], until: int | None = None) -> PrefixCache:
        """Compute what comes before the question once, for any number of passes, questions and interventions after it.

        Exact: `model(inputs, prefix=prefix)` gives the last of the logits of `model(inputs)`. Interventions that act
        before the question raise in such passes, unless they acted here already. The first prefix of each kind of
        inputs is compared with a whole pass, which costs two passes more.

        Args:
            inputs: Result of `prepare`, or any mapping of the tensors that the Hugging Face forward takes.
            until: Number of positions, padding included; None for all before the first question of the batch. Pictures
                and videos must be among them.

        Raises:
            ValueError: If nothing comes before the question, a picture comes after it, or the model does not compute
                the same after a prefix as in a whole pass: its decoder attends to an encoder, for example, or its
                prompts attend to later positions.
        """
        length = prefix_length(getattr(inputs, "tokens", None)) if until is None else until
        if any(attention.is_cross_attention for layer in self.hf_layers for attention in layer.attentions.values()):
            raise ValueError(f"{type(self.hf_model).__name__} attends to an encoder: its prompts have no prefix.")
        stack = self.hf_layers[0].stack
        if frozenset(inputs) not in self._exact_prefixes:
            with self._lock, pass_through_corelens(self.hf_model):
                check_prefix_is_exact(self.hf_model, stack, inputs, length)
            self._exact_prefixes.add(frozenset(inputs))
        with self.connected(inputs, getattr(inputs, "tokens", None)):
            return compute_prefix(self.hf_model, stack, inputs, length, tuple(hook_functions(self.hook_points())))

    def generate(
        self,
        inputs: Mapping[str, Any] | Int[Tensor, "batch position"] | None = None,
        /,
        *,
        prefix: PrefixCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call Hugging Face's `generate` under the present hooks, which act in prefill and in every decoding step.

        Args:
            inputs: Result of `prepare`, or any mapping of the tensors that the Hugging Face forward takes.
            prefix: Result of `model.prefix` for these inputs, or for others that begin alike.
            kwargs: More tensors, and arguments of generate, e.g. `max_new_tokens`, `do_sample`.

        Returns:
            Prompt and continuation, [batch position], or another output of Hugging Face's if `kwargs` request it.
        """
        check_generate_arguments(kwargs)
        tensors = self._tensors(inputs)
        kwargs = {**tensors, **kwargs}
        if self._has_hooks:
            if asks_for_attentions(self.hf_model, kwargs):
                raise ValueError(
                    "output_attentions=True gives no attention under hooks, which switch its function: a hook on "
                    f"hook_pattern sees it in every step. {docs_link('arguments')}"
                )
            # With a static cache on a GPU it would compile the model, and hooks need its Python code.
            kwargs = {"disable_compile": True} | kwargs
        with self.connected(kwargs, getattr(inputs, "tokens", None), prefix):
            if prefix is not None:
                settings = {name: value for name, value in kwargs.items() if name not in tensors}
                kwargs = settings | prefix.generate_inputs(tensors, settings)
            # Hugging Face types generate for a mixin.
            return self.hf_model.generate(**kwargs)  # pyright: ignore[reportCallIssue]

    def answer(self, inputs: PreparedInputs, max_new_tokens: int = 32, prefix: PrefixCache | None = None) -> list[str]:
        """Greedy answer to each prepared question, as text."""
        sequences = self.generate(inputs, prefix=prefix, max_new_tokens=max_new_tokens, do_sample=False)
        # Decoders beside an encoder return the answer without the prompt.
        n_prompt = 0 if self.hf_model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        return [text.strip() for text in self.tokenizer.batch_decode(sequences[:, n_prompt:], skip_special_tokens=True)]

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        queries: Bool[Tensor, "batch position"] | None = None,
    ) -> Iterator["HookedMLLM"]:
        """Add hooks until the block ends; the block may hold passes, `generate` and further blocks.

        Args:
            fwd_hooks: Pairs of a hook name and a function `(tensor, hook)` that returns a replacement or None.
            bwd_hooks: The same for gradients.
            reset_hooks_end: Remove the hooks at the end.
            clear_contexts: Clear the hook points' contexts with them.
            queries: Positions of the prompt whose rows of `attn_scores` and `pattern` these functions get, instead of
                all: [batch head query key] with the chosen queries in order (`row_mask` marks the real rows when
                samples have different numbers of them). Edited rows are written back to `z`. A function that has a
                `where` of its own, as interventions do, gets the rows that it selects.

        Raises:
            ValueError: If a hook point or an ablated head does not exist.
        """
        self._check_hooks([*fwd_hooks, *bwd_hooks])
        fwd, bwd = limit_rows(fwd_hooks, queries), limit_rows(bwd_hooks, queries)
        with self._attached(fwd, bwd, reset_hooks_end, clear_contexts):
            yield self

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        queries: Bool[Tensor, "batch position"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one pass with hooks, which `hooks` describes, and return its output.

        Raises:
            ValueError: If backward hooks would be removed before a backward pass.
        """
        if bwd_hooks and kwargs.get("reset_hooks_end", True):
            raise ValueError(
                "run_with_hooks removes bwd_hooks before a backward pass, so that they never act: call model(inputs) "
                "and backward in a `with model.hooks(bwd_hooks=...)` block, or give reset_hooks_end=False."
            )
        fwd, bwd = limit_rows(fwd_hooks, queries), limit_rows(bwd_hooks, queries)
        return super().run_with_hooks(*model_args, fwd_hooks=fwd, bwd_hooks=bwd, **kwargs)

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride] as TransformerLens's own models do
        self,
        *model_args: Any,
        queries: Bool[Tensor, "batch position"] | None = None,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache]:
        """Run one pass and cache the activations of its hook points.

        Without `queries` and `names_filter` the cache holds every pattern of the decoder whole: heads x positions x
        positions per layer. It warns of a cache of more than half of the free memory, and names a filter that would do.
        The vision tower's hook points are cached only if `names_filter` selects them.

        Args:
            model_args: Arguments of `forward`.
            queries: Positions whose rows `attn_scores` and `pattern` hold, instead of all; see `hooks`.
            names_filter: Hook names to keep: one, a list, or a filter of names; None for all of the decoder.
            device: Device of the cache; None for the model's. This and the following are TransformerLens's.
            remove_batch_dim: Drop the batch axis of a batch of one.
            incl_bwd: Call backward on the loss, and cache gradients too.
            reset_hooks_end: Remove the caching hooks at the end.
            clear_contexts: Clear the hook points' contexts with them.
            pos_slice: Positions to keep.
            kwargs: Tensors, and other arguments of `forward`.

        Returns:
            Output of the pass, and a TransformerLens cache: `cache["pattern", 3]`.

        Raises:
            ValueError: If a hook name does not exist, or `remove_batch_dim` or `pos_slice` cannot apply.
        """
        tensors = {**input_mapping(*model_args[:1]), **kwargs}
        if incl_bwd and tensors.get("labels") is None and kwargs.get("return_type") != "loss":
            raise ValueError("incl_bwd=True calls backward on a loss: give labels, or return_type='loss'.")
        selects = self._selector(names_filter)
        if (stop := kwargs.get("stop_at_layer")) is not None and (names_filter is None or callable(names_filter)):
            reached = self._reached(layer_to_stop_at(stop, len(self.blocks), kwargs, kwargs.get("return_type", "auto")))
            selects = {name for name in reached if selects(name)}.__contains__
        if remove_batch_dim and (n_samples := batch_shape(tensors)[0]) != 1:
            raise ValueError(f"remove_batch_dim=True needs a batch of one, and this one has {n_samples} samples.")
        if pos_slice is not None and any(selects(name) for name in self.hook_dict if name.endswith("hook_o_in")):
            raise ValueError(
                "pos_slice takes the head axis of hook_o_in for positions: leave hook_o_in out with names_filter, or "
                "slice what the cache holds."
            )
        self._warn_of_size(selects, tensors, queries, device)
        # TransformerLens's, since the filter is one that selects nothing where the pass stops before it.
        cache, fwd, bwd = super().get_caching_hooks(
            selects,
            incl_bwd,
            None if device is None else torch.device(device),
            remove_batch_dim=remove_batch_dim,
            pos_slice=pos_slice,
        )
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts, queries):
            output = self(*model_args, **kwargs)
            if incl_bwd:
                output.backward()
        return output, MLLMCache(cache, self, has_batch_dim=not remove_batch_dim)
