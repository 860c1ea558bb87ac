"""Smaller layers: channels that are removed from a network together, and their removal."""

from woodbury.integrations.compaction.api import Compacted as Compacted
from woodbury.integrations.compaction.api import compact as compact
from woodbury.integrations.compaction.api import compacted as compacted
from woodbury.integrations.compaction.coupled_units import CoupledChannels as CoupledChannels
from woodbury.integrations.compaction.coupled_units import coupled_channels as coupled_channels
