"""Samples: questions, their pictures, answers and evidence; readers of data sets, synthetic data and scoring."""

from corelens.data.batching import prepare_batch as prepare_batch
from corelens.data.batching import prepare_batches as prepare_batches
from corelens.data.readers.base import Samples as Samples
from corelens.data.readers.base import Skipped as Skipped
from corelens.data.readers.mlvu import mlvu as mlvu
from corelens.data.readers.mmdocir import mmdocir as mmdocir
from corelens.data.readers.mmlongbench import mmlongbench as mmlongbench
from corelens.data.readers.mmlongbench_doc import mmlongbench_doc as mmlongbench_doc
from corelens.data.readers.refcocog import refcocog as refcocog
from corelens.data.readers.videomme import videomme as videomme
from corelens.data.readers.vidstg import vidstg as vidstg
from corelens.data.registry import load as load
from corelens.data.sample import Evidence as Evidence
from corelens.data.sample import Sample as Sample
from corelens.data.sample import evidence_tokens as evidence_tokens
from corelens.data.scoring import BoxUnit as BoxUnit
from corelens.data.scoring import Tally as Tally
from corelens.data.scoring import score as score
from corelens.data.scoring import tally as tally
from corelens.data.scoring import tally_by as tally_by
from corelens.data.synthetic.charts import charts as charts
from corelens.data.synthetic.documents import documents as documents
from corelens.data.synthetic.haystacks import haystacks as haystacks
from corelens.data.synthetic.photographs import photographs as photographs
