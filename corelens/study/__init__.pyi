from .budget import FULL as FULL
from .budget import QUICK as QUICK
from .budget import StudyBudget as StudyBudget
from .run import Study as Study
from .run import run_study as run_study
from .verdict import Finding as Finding
from .verdict import Measurement as Measurement
