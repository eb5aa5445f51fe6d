"""Tests of the five claims of arXiv 2606.05843, each with a verdict that can be negative; one module per claim."""

from corelens.study.acceleration import acceleration as acceleration
from corelens.study.budget import FULL as FULL
from corelens.study.budget import QUICK as QUICK
from corelens.study.budget import StudyBudget as StudyBudget
from corelens.study.division import division as division
from corelens.study.generality import generality as generality
from corelens.study.necessity import necessity as necessity
from corelens.study.run import Study as Study
from corelens.study.run import run_study as run_study
from corelens.study.sparsity import sparsity as sparsity
from corelens.study.verdict import Finding as Finding
from corelens.study.verdict import Measurement as Measurement
