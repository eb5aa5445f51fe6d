"""How good an answer is, by the rules of each data set's authors."""

from corelens.data.scoring.boxes import BoxUnit as BoxUnit
from corelens.data.scoring.boxes import box_hit as box_hit
from corelens.data.scoring.boxes import iou as iou
from corelens.data.scoring.boxes import parse_box as parse_box
from corelens.data.scoring.choose import Tally as Tally
from corelens.data.scoring.choose import score as score
from corelens.data.scoring.choose import tally as tally
from corelens.data.scoring.documents import f1_of_answerable as f1_of_answerable
from corelens.data.scoring.documents import mmlongbench_doc as mmlongbench_doc
from corelens.data.scoring.documents import mmlongbench_docqa as mmlongbench_docqa
from corelens.data.scoring.short import anls as anls
from corelens.data.scoring.short import choice as choice
from corelens.data.scoring.short import contains as contains
from corelens.data.scoring.short import count as count
from corelens.data.scoring.short import exact as exact
from corelens.data.scoring.short import label as label
from corelens.data.scoring.short import numeric as numeric
from corelens.data.scoring.short import yes_no as yes_no
