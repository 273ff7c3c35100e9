"""A small data set and a small saved model for whole runs."""

from small_stages import adapter as adapter
from small_stages import data as data
from small_stages import entries as entries
from small_stages import rated as rated
from small_stages import rated_recipe as rated_recipe
from small_stages import recipe as recipe
from small_stages import stop_after as stop_after
