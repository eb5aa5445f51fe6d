"""Head-sparse inference: some heads read everything, the others sinks and a window."""

from corelens.sparse.antidiagonal import block_attention as block_attention
from corelens.sparse.kernels import decode_attention as decode_attention
from corelens.sparse.kernels import full_attention as full_attention
from corelens.sparse.kernels import streaming_attention as streaming_attention
from corelens.sparse.reference import reference as reference
from corelens.sparse.reference import visible_full as visible_full
from corelens.sparse.reference import visible_streaming as visible_streaming
