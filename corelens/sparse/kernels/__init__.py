"""Attention of full and of streaming heads, and of chosen blocks; all equal to `reference` under its masks."""

from corelens.sparse.kernels.block_sparse import block_attention as block_attention
from corelens.sparse.kernels.reference import reference as reference
from corelens.sparse.kernels.reference import visible_full as visible_full
from corelens.sparse.kernels.reference import visible_streaming as visible_streaming
from corelens.sparse.kernels.streaming import decode_attention as decode_attention
from corelens.sparse.kernels.streaming import full_attention as full_attention
from corelens.sparse.kernels.streaming import streaming_attention as streaming_attention
