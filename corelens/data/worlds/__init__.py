"""Pictures drawn from a seed that know where their evidence is.

Sample n of a seed is the same however many are drawn, and its pictures are drawn when they are looked at.
"""

from corelens.data.worlds.charts import charts as charts
from corelens.data.worlds.documents import documents as documents
from corelens.data.worlds.haystacks import haystacks as haystacks
from corelens.data.worlds.photographs import photographs as photographs
