"""What is asked of a model, and where in the pictures the answer is."""

from corelens.data.batches import prepare_batch as prepare_batch
from corelens.data.batches import prepared_batches as prepared_batches
from corelens.data.evidence import evidence_tokens as evidence_tokens
from corelens.data.sample import Evidence as Evidence
from corelens.data.sample import Sample as Sample
