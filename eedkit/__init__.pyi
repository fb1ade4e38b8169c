from eedkit import available as available
from eedkit import lab as lab
from eedkit import paper as paper
from eedkit import plots as plots
from eedkit import probe as probe
from eedkit import report as report
from eedkit import results as results
from eedkit import store as store
from eedkit import study as study
from eedkit import theory as theory
from eedkit.explorer.card import card as card
from eedkit.explorer.interactive import explore as explore
from eedkit.probe.measure import layers as layers
from eedkit.probe.measure import measure as measure
from eedkit.probe.metrics import COMPARED as COMPARED
from eedkit.probe.metrics import METRICS as METRICS
from eedkit.probe.metrics import Metric as Metric
from eedkit.results.summary import compare as compare
from eedkit.results.summary import concat as concat
from eedkit.results.summary import summarise as summarise
from eedkit.store.join import open as open
from eedkit.study import Study as Study
from eedkit.theory import actions as actions
from eedkit.theory import distances as distances
from eedkit.theory import groups as groups
from eedkit.tracker import Tracker as Tracker

__version__: str
