"""The small data set and model of the stages, for those of the compared systems."""

from tiny_run import data as data
from tiny_run import recipe as recipe
