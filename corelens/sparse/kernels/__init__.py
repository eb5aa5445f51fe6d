"""Attention kernels of full and streaming heads and of blocks, each equal to `reference` under a mask."""

from corelens.sparse.kernels.block_sparse import block_attention as block_attention
from corelens.sparse.kernels.block_streaming import block_streaming_attention as block_streaming_attention
from corelens.sparse.kernels.reference import near_or_first_blocks as near_or_first_blocks
from corelens.sparse.kernels.reference import reference as reference
from corelens.sparse.kernels.reference import visible_full as visible_full
from corelens.sparse.kernels.reference import visible_streaming as visible_streaming
from corelens.sparse.kernels.streaming import decode_attention as decode_attention
from corelens.sparse.kernels.streaming import full_attention as full_attention
from corelens.sparse.kernels.streaming import streaming_attention as streaming_attention
